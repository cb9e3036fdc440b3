#!/usr/bin/env bash
# Builds every distribution, installs the wheels alone into a clean environment, and runs the tests against them.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
work="$1"
shift
rm -rf "$work" && mkdir -p "$work/wheels" "$work/run"

for distribution in "$root" "$root"/plugins/*/; do
    python -m build --wheel --installer uv --outdir "$work/wheels" "$distribution" >/dev/null
done
ls "$work/wheels"

uv venv -q --python "$(command -v python)" "$work/venv"
export VIRTUAL_ENV="$work/venv"
uv pip install -q -c "$root/constraints.txt" "$work"/wheels/*.whl -r "$root/tests/requirements.txt"

# The copy has no source of the packages beside it, so what is imported is what was installed.
cp -r "$root/tests" "$root/docs" "$root/pyproject.toml" "$work/run/"
for plugin in "$root"/plugins/*/; do
    name="$(basename "$plugin")"
    mkdir -p "$work/run/plugins/$name"
    cp -r "$plugin/tests" "$plugin/README.md" "$work/run/plugins/$name/"
done
cp "$root"/README.md "$root"/CHANGELOG.md "$work/run/"
# Links and paths in the documentation are checked against the source tree; nothing is imported from there.
export LNLBENCH_SOURCE="$root"
cd "$work/run"
"$work/venv/bin/python" -c "import lnlbench; assert '$work' in lnlbench.__file__, lnlbench.__file__"
"$work/venv/bin/python" -m pytest -n 2 --dist worksteal -m "not slow and not realdata and not gpu" "$@"
