/* A stand-in for the CUDA driver, libcuda.so.1, for machines without a GPU.
 *
 * It keeps what a real driver would refuse: memory that was not allocated, images that are no cubin for this device,
 * grids, blocks and shared memory beyond the limits or other than the kernel was compiled for. Device addresses cannot
 * be read by the host. Each launch is written to MOCK_LOG, its arguments as bytes: how many there are and how long each
 * is, the mock reads in the cubin. It computes one kernel only, by name: scale_add (see there).
 *
 * It is as MOCK_NAME, MOCK_CAPABILITY (90) and MOCK_MEMORY (bytes) say; MOCK_DEVICES=0 and MOCK_LAUNCH=refuse|crash
 * make it fail on purpose.
 */
#define _GNU_SOURCE
#include <cuda.h>
#undef cuEventElapsedTime /* the header's second version is of CUDA 13: older drivers have the first */
#include <elf.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define EXPORT(name) CUresult name
#define FAR 0x00a0000000000000ull /* no address that this process could read */
#define MOST_BLOCKS 4096
#define MOST_ARGUMENTS 64

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}
static int launch_is(const char *what) {
  const char *text = getenv("MOCK_LAUNCH");
  return text && !strcmp(text, what);
}
static void logged(const char *line) {
  const char *path = getenv("MOCK_LOG");
  FILE *file = path ? fopen(path, "a") : NULL;
  if (file) {
    fprintf(file, "%s\n", line);
    fclose(file);
  }
}

/* ---- errors ---- */
static const struct { CUresult status; const char *name, *text; } ERRORS[] = {
    {CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {CUDA_ERROR_NO_BINARY_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for this device"},
    {CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
};
static CUresult described(CUresult status, const char **text, int name) {
  for (size_t i = 0; i < sizeof ERRORS / sizeof *ERRORS; i++)
    if (ERRORS[i].status == status) {
      *text = name ? ERRORS[i].name : ERRORS[i].text;
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}
EXPORT(cuGetErrorName)(CUresult status, const char **text) { return described(status, text, 1); }
EXPORT(cuGetErrorString)(CUresult status, const char **text) { return described(status, text, 0); }

/* ---- device and context ---- */
static int initialised;
static CUresult crashed;
static __thread CUcontext current;

EXPORT(cuInit)(unsigned flags) {
  if (!setting("MOCK_DEVICES", 1)) return CUDA_ERROR_NO_DEVICE;
  initialised = 1;
  return CUDA_SUCCESS;
}
EXPORT(cuDriverGetVersion)(int *version) { return *version = 12080, CUDA_SUCCESS; }
EXPORT(cuDeviceGetCount)(int *count) {
  return initialised ? (*count = 1, CUDA_SUCCESS) : CUDA_ERROR_NOT_INITIALIZED;
}
EXPORT(cuDeviceGet)(CUdevice *device, int index) {
  return !initialised ? CUDA_ERROR_NOT_INITIALIZED : index ? CUDA_ERROR_INVALID_VALUE : (*device = 0, CUDA_SUCCESS);
}
EXPORT(cuDeviceGetName)(char *name, int size, CUdevice device) {
  return snprintf(name, size, "%s", getenv("MOCK_NAME") ? getenv("MOCK_NAME") : "Mock GPU"), CUDA_SUCCESS;
}
EXPORT(cuDeviceGetAttribute)(int *value, CUdevice_attribute attribute, CUdevice device) {
  long capability = setting("MOCK_CAPABILITY", 90);
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 132; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = (capability == 90 ? 227 : 163) * 1024; break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *value = 1755000; break;
  case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *value = 1 << 20; break;
  default: *value = 1;
  }
  return CUDA_SUCCESS;
}
EXPORT(cuDevicePrimaryCtxRetain)(CUcontext *context, CUdevice device) {
  return !initialised ? CUDA_ERROR_NOT_INITIALIZED : (*context = (CUcontext)0x1234, CUDA_SUCCESS);
}
EXPORT(cuCtxGetCurrent)(CUcontext *context) { return *context = current, CUDA_SUCCESS; }
EXPORT(cuCtxSetCurrent)(CUcontext context) { return current = context, CUDA_SUCCESS; }
EXPORT(cuCtxGetDevice)(CUdevice *device) { return current ? (*device = 0, CUDA_SUCCESS) : CUDA_ERROR_INVALID_CONTEXT; }
EXPORT(cuCtxSetLimit)(CUlimit limit, size_t value) { return CUDA_SUCCESS; }
EXPORT(cuCtxGetLimit)(size_t *value, CUlimit limit) { return *value = 0, CUDA_SUCCESS; }
EXPORT(cuCtxSynchronize)(void) { return current ? crashed : CUDA_ERROR_INVALID_CONTEXT; }
EXPORT(cuStreamIsCapturing)(CUstream stream, CUstreamCaptureStatus *status) {
  return *status = CU_STREAM_CAPTURE_STATUS_NONE, CUDA_SUCCESS;
}

/* ---- memory ---- */
static struct { char *start; size_t size; } blocks[MOST_BLOCKS];
static size_t in_use, granted;

static char *host(CUdeviceptr pointer, size_t size) { /* where the bytes are, if all of them were allocated */
  char *start = (char *)(pointer - FAR);
  for (int i = 0; i < MOST_BLOCKS; i++)
    if (blocks[i].start && start >= blocks[i].start && start + size <= blocks[i].start + blocks[i].size) return start;
  return NULL;
}
EXPORT(cuMemAllocAsync)(CUdeviceptr *pointer, size_t size, CUstream stream) {
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (!size) return CUDA_ERROR_INVALID_VALUE;
  if (in_use + size > (size_t)setting("MOCK_MEMORY", 1 << 30)) return CUDA_ERROR_OUT_OF_MEMORY;
  int i = 0;
  while (i < MOST_BLOCKS && blocks[i].start) i++;
  if (i == MOST_BLOCKS) return CUDA_ERROR_OUT_OF_MEMORY;
  blocks[i].start = aligned_alloc(256, (size + 255) / 256 * 256);
  memset(blocks[i].start, 0xcd, blocks[i].size = size); /* fresh memory holds anything but zeros */
  in_use += size, granted++;
  return *pointer = (CUdeviceptr)blocks[i].start + FAR, CUDA_SUCCESS;
}
EXPORT(cuMemFreeAsync)(CUdeviceptr pointer, CUstream stream) {
  for (int i = 0; i < MOST_BLOCKS; i++)
    if (blocks[i].start && (CUdeviceptr)blocks[i].start + FAR == pointer) {
      free(blocks[i].start);
      blocks[i].start = NULL, in_use -= blocks[i].size;
      return CUDA_SUCCESS;
    }
  return CUDA_ERROR_INVALID_VALUE;
}
EXPORT(cuDeviceGetDefaultMemPool)(CUmemoryPool *pool, CUdevice device) {
  return *pool = (CUmemoryPool)0x9001, CUDA_SUCCESS;
}
EXPORT(cuMemPoolSetAttribute)(CUmemoryPool pool, CUmemPool_attribute attribute, void *value) {
  int right = pool == (CUmemoryPool)0x9001 && attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
  return right && *(cuuint64_t *)value ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
EXPORT(cuMemGetInfo)(size_t *free_bytes, size_t *total) {
  *total = setting("MOCK_MEMORY", 1 << 30), *free_bytes = *total - in_use;
  return CUDA_SUCCESS;
}
EXPORT(cuMemcpyHtoD)(CUdeviceptr to, const void *from, size_t size) {
  char *start = host(to, size);
  return !current ? CUDA_ERROR_INVALID_CONTEXT : !start ? CUDA_ERROR_INVALID_VALUE : (memcpy(start, from, size), crashed);
}
EXPORT(cuMemcpyDtoH)(void *to, CUdeviceptr from, size_t size) {
  char *start = host(from, size);
  return !current ? CUDA_ERROR_INVALID_CONTEXT : !start ? CUDA_ERROR_INVALID_VALUE : (memcpy(to, start, size), crashed);
}
EXPORT(cuMemsetD8)(CUdeviceptr to, unsigned char value, size_t size) {
  char *start = host(to, size);
  return start ? (memset(start, value, size), CUDA_SUCCESS) : CUDA_ERROR_INVALID_VALUE;
}
EXPORT(cuPointerGetAttribute)(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  return host(pointer, 0) ? (*(CUdeviceptr *)value = pointer, CUDA_SUCCESS) : CUDA_ERROR_INVALID_VALUE;
}
EXPORT(cuPointerGetAttributes)(unsigned n, CUpointer_attribute *attributes, void **values, CUdeviceptr pointer) {
  return CUDA_ERROR_INVALID_VALUE;
}

/* ---- events: the host's clock ---- */
EXPORT(cuEventCreate)(CUevent *event, unsigned flags) {
  return *event = calloc(1, sizeof(struct timespec)), CUDA_SUCCESS;
}
EXPORT(cuEventRecord)(CUevent event, CUstream stream) {
  return clock_gettime(CLOCK_MONOTONIC, (struct timespec *)event), CUDA_SUCCESS;
}
EXPORT(cuEventSynchronize)(CUevent event) { return crashed; }
CUresult cuEventElapsedTime(float *milliseconds, CUevent start, CUevent end) {
  struct timespec *a = (void *)start, *b = (void *)end;
  *milliseconds = 1e3 * (b->tv_sec - a->tv_sec) + 1e-6 * (b->tv_nsec - a->tv_nsec);
  return CUDA_SUCCESS;
}
EXPORT(cuEventDestroy)(CUevent event) { return free(event), CUDA_SUCCESS; }

/* ---- modules: what the cubin says about its one kernel ---- */
struct kernel {
  char name[256];
  int arguments, threads, shared;
  struct { int offset, size; } argument[MOST_ARGUMENTS];
};
static void read_info(struct kernel *kernel, const unsigned char *info, size_t size) {
  for (size_t at = 0; at + 4 <= size;) {
    int format = info[at], attribute = info[at + 1], length = info[at + 2] | info[at + 3] << 8;
    const unsigned char *value = info + at + 4;
    if (format == 4 && attribute == 0x17) { /* EIATTR_KPARAM_INFO: ordinal, offset, size in the upper 14 bits */
      uint32_t flags;
      uint16_t place[2];
      memcpy(place, value + 4, 4), memcpy(&flags, value + 8, 4);
      if (place[0] < MOST_ARGUMENTS) {
        kernel->argument[place[0]].offset = place[1], kernel->argument[place[0]].size = flags >> 18;
        if (place[0] >= kernel->arguments) kernel->arguments = place[0] + 1;
      }
    } else if (format == 4 && attribute == 0x10) /* EIATTR_REQNTID */
      memcpy(&kernel->threads, value, 4);
    at += 4 + (format == 4 ? length : 0);
  }
}
EXPORT(cuModuleLoadData)(CUmodule *module, const void *image) {
  const Elf64_Ehdr *elf = image;
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (memcmp(elf->e_ident, ELFMAG, SELFMAG) || elf->e_machine != EM_CUDA) return CUDA_ERROR_INVALID_IMAGE;
  int built_for = elf->e_ident[EI_ABIVERSION] >= 8 ? elf->e_flags >> 8 & 0xff : elf->e_flags & 0xff;
  if (built_for != setting("MOCK_CAPABILITY", 90)) return CUDA_ERROR_NO_BINARY_FOR_GPU;
  const Elf64_Shdr *sections = (void *)((char *)image + elf->e_shoff);
  const char *names = (char *)image + sections[elf->e_shstrndx].sh_offset;
  struct kernel *kernel = calloc(1, sizeof *kernel);
  for (int i = 0; i < elf->e_shnum; i++) {
    const char *name = names + sections[i].sh_name;
    if (!strncmp(name, ".nv.info.", 9)) {
      snprintf(kernel->name, sizeof kernel->name, "%s", name + 9);
      read_info(kernel, (unsigned char *)image + sections[i].sh_offset, sections[i].sh_size);
    }
  }
  return *module = (CUmodule)kernel, CUDA_SUCCESS;
}
EXPORT(cuModuleUnload)(CUmodule module) { return free(module), CUDA_SUCCESS; }
EXPORT(cuModuleGetFunction)(CUfunction *function, CUmodule module, const char *name) {
  if (strcmp(((struct kernel *)module)->name, name)) return CUDA_ERROR_NOT_FOUND;
  return *function = (CUfunction)module, CUDA_SUCCESS;
}
EXPORT(cuFuncGetAttribute)(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}
EXPORT(cuFuncSetAttribute)(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
  return ((struct kernel *)function)->shared = value, CUDA_SUCCESS;
}
EXPORT(cuFuncSetCacheConfig)(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }
EXPORT(cuOccupancyMaxActiveClusters)(int *count, CUfunction function, const CUlaunchConfig *config) {
  return *count = 1, CUDA_SUCCESS;
}

/* ---- launch ---- */
/* scale_add(x, y, out, n, scale): out[i] = scale * x[i] + y[i], each program 64 elements, all float32 */
static CUresult scale_add(const CUlaunchConfig *config, void **arguments) {
  size_t n = *(int *)arguments[3], bytes = 4 * n, programs = config->gridDimX;
  float *x = (float *)host(*(CUdeviceptr *)arguments[0], bytes), *y = (float *)host(*(CUdeviceptr *)arguments[1], bytes);
  float *out = (float *)host(*(CUdeviceptr *)arguments[2], bytes), scale = *(float *)arguments[4];
  if (!x || !y || !out) return CUDA_ERROR_ILLEGAL_ADDRESS;
  for (size_t i = 0; i < n && i < 64 * programs; i++) out[i] = scale * x[i] + y[i];
  return CUDA_SUCCESS;
}
static void log_launch(const struct kernel *kernel, const CUlaunchConfig *c, void **arguments) {
  char line[8192];
  int at = snprintf(line, sizeof line,
                    "{\"kernel\": \"%s\", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %u, "
                    "\"stream\": %llu, \"arguments\": [",
                    kernel->name, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ,
                    c->sharedMemBytes, (unsigned long long)c->hStream);
  for (int i = 0; i < kernel->arguments; i++) {
    at += snprintf(line + at, sizeof line - at, "%s\"", i ? ", " : "");
    for (int b = 0; b < kernel->argument[i].size; b++)
      at += snprintf(line + at, sizeof line - at, "%02x", ((unsigned char *)arguments[i])[b]);
    at += snprintf(line + at, sizeof line - at, "\"");
  }
  snprintf(line + at, sizeof line - at, "]}");
  logged(line);
}
EXPORT(cuLaunchKernelEx)(const CUlaunchConfig *config, CUfunction function, void **arguments, void **extra) {
  struct kernel *kernel = (struct kernel *)function;
  if (!current) return CUDA_ERROR_INVALID_CONTEXT;
  if (launch_is("refuse")) return CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES;
  if (!config->gridDimX || !config->gridDimY || config->gridDimY > 65535 || !config->gridDimZ ||
      config->gridDimZ > 65535 || extra)
    return CUDA_ERROR_INVALID_VALUE;
  if ((int)(config->blockDimX * config->blockDimY * config->blockDimZ) != kernel->threads) return CUDA_ERROR_INVALID_VALUE;
  int allowed;
  cuDeviceGetAttribute(&allowed, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, 0);
  if (config->sharedMemBytes > (unsigned)allowed) return CUDA_ERROR_INVALID_VALUE;
  if (config->sharedMemBytes > 48 * 1024 && config->sharedMemBytes > (unsigned)kernel->shared) /* not opted in */
    return CUDA_ERROR_INVALID_VALUE;
  log_launch(kernel, config, arguments);
  if (launch_is("crash")) crashed = CUDA_ERROR_ILLEGAL_ADDRESS; /* said by whatever waits for the device next */
  else if (!strcmp(kernel->name, "scale_add")) crashed = scale_add(config, arguments);
  return CUDA_SUCCESS;
}

__attribute__((destructor)) static void say_goodbye(void) {
  char line[128];
  snprintf(line, sizeof line, "{\"granted\": %zu, \"bytes_in_use\": %zu}", granted, in_use);
  logged(line);
}
