#!/bin/sh
# Adds torch as pinned in the file $2 to the environment $1, from where pip looks: an index, a folder of wheels.
# Never fails: without torch all but one of the peers can be measured.
set -u
venv=$1
pinned=$2

if "$venv/bin/python" -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec("torch") is None)'; then
    exit 0
fi

echo "      fetching torch, the CPU build (0.2 GB; 0.8 GB on disk)"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
    --no-deps --require-hashes --retries 1 -r "$pinned" >"$venv/install-torch.log" 2>&1 || {
    echo "torch's CPU build is not where pip looks: PyOD's AutoEncoder will not be measured, all others will." >&2
    echo "Name the index of PyTorch's CPU builds in PIP_EXTRA_INDEX_URL; what pip said: $venv/install-torch.log." >&2
}
exit 0
