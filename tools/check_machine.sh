#!/bin/sh
# Says what this machine lacks for `make demo` and `make test`.
# Usage: check_machine.sh PYTHON
python=$1
fail() { echo "captionlake: $1" >&2; exit 1; }

command -v "$python" >/dev/null 2>&1 || fail "Python is missing${python:+ ($python is no program)}: install Python 3.11 or 3.12, or name one with make PYTHON=/path/to/python3.12"
"$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null ||
  fail "$python is $("$python" --version 2>&1): install Python 3.11 or 3.12, or name one with make PYTHON=/path/to/python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments: install its venv package (python3-venv on Debian)"

java=${JAVA_HOME:+$JAVA_HOME/bin/}java
command -v "$java" >/dev/null 2>&1 ||
  fail "Java is missing: install Java 17 or 21 (openjdk-17-jre-headless on Debian), or set JAVA_HOME"
version=$("$java" -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1)
[ "${version:-0}" -ge 17 ] || fail "$java is Java ${version:-of unknown version}: Spark needs Java 17 or 21; install it, or set JAVA_HOME"
