"""What a teacher runs: build handouts, grade submissions, report, prove the checks. Not part of a handout."""
