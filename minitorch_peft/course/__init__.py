"""The course: assignments cut from the library itself, checked and graded task by task.

The library is the solution. ``marks`` finds the regions that belong to a task, ``manifest`` says what the tasks are,
an assignment's ``checks`` say what must hold, ``runner`` holds one solution against them, in a process of its own.
What only a teacher needs (handouts, grading, proofs of the checks) is in ``teacher``, which no handout contains.
"""
