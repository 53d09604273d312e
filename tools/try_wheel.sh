#!/usr/bin/env bash
# Installs a wheel into a new environment and uses it as a user would: outside the source tree, without a compiler.
#     tools/try_wheel.sh WHEEL [other requirements, such as torch==2.10.0]
# PYTHON creates the environment (default: python3). If BESIDE is set, packages come from that folder instead of a
# registry.
set -euo pipefail
wheel=$(realpath "$1")
check=$(realpath "$(dirname "${BASH_SOURCE[0]}")/try_wheel.py")
shift
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
bin=$folder/venv/bin
if [ -n "${BESIDE:-}" ]; then
    echo "$BESIDE" > "$("$bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
    "$bin/pip" install --quiet --no-index --no-deps "$wheel"
else
    "$bin/pip" install --quiet "$@" "$wheel[app]"
fi
cd "$folder"
env -u PYTHONPATH -u CXX -u CC PATH="$bin" "$bin/python" -I "$check"
