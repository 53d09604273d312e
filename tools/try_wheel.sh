#!/usr/bin/env bash
# Install a wheel into a new environment and use it as a user does: outside the source tree, without a compiler.
#     tools/try_wheel.sh WHEEL [what else to install, such as torch==2.10.0]
# PYTHON makes the environment (default: python3); BESIDE, a folder of packages, is looked into instead of a
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
