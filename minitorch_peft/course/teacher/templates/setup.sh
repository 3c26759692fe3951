#!/usr/bin/env bash
# Run once, when Gradescope builds the autograder's image.
set -euo pipefail
apt-get update
apt-get install -y python3 python3-venv libseccomp2
python3 -m venv /autograder/venv
/autograder/venv/bin/python -m pip install --quiet '/autograder/source[teach,data]'
