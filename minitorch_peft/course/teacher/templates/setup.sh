#!/usr/bin/env bash
# Run once, when Gradescope builds the autograder's image.
set -euo pipefail
apt-get update
apt-get install -y python3 python3-venv libseccomp2
python3 -m venv /autograder/venv
/autograder/venv/bin/python -m pip install --quiet '/autograder/source[teach,data]'
# Nothing is graded where the sandbox is incomplete: better said now than to every student. (Where you grade code that you
# trust, add --weak-sandbox in run_autograder and remove the next line.)
/autograder/venv/bin/python -m minitorch_peft.course.teacher.grade
