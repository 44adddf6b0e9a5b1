#!/bin/sh
# Sets up the virtual environment named $1 from the lock file $2, saying what it does as it goes.
# Everything pip says goes to install.log in that environment; of a failure the end is shown, and the exit code is 1.
set -eu
venv=$1
lock=$2
python=${PYTHON:-python3}
log=$venv/install.log
record=$venv/.dependencies # the checksum of the lock file that was installed in full

if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
    echo "pgoutlier needs Python 3.11, 3.12 or 3.13; '$python' is $("$python" --version 2>&1). Name another: make PYTHON=python3.12 ..." >&2
    exit 2
fi

fail() { # $1: what failed
    echo "$1 failed; pip's last words:" >&2
    if grep -q '^ *ERROR' "$log"; then
        sed -n '/^ *ERROR/,$p' "$log"
    else
        cat "$log"
    fi | grep -v '^WARNING' | tail -n 15 | sed 's/^/    /' >&2 || :
    echo "All of it is in $log. Once mended, run the same command again: it goes on where it stopped." >&2
    exit 1
}

progress() { # reads what pip says, says how far it is
    pinned=" $(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/\1/p' "$lock" | tr '\n' ' ')"
    total=$(echo "$pinned" | wc -w | tr -d ' ')
    seen=' '
    n=0
    while read -r first second rest; do
        case $first in
            Ignoring) total=$((total - 1)) && continue ;; # for another platform or Python; pip says these first
            Collecting) name=${second%%[=;:]*} ;;
            Processing) name=${second##*/} name=$(echo "${name%%-*}" | tr 'A-Z_' 'a-z-') ;; # a local wheel
            Requirement) name=${rest#satisfied: } name=${name%%[=;: ]*} ;;
            Installing) echo "      unpacking (the longest step) ..." && continue ;;
            WARNING:) [ "$second" != Retrying ] || echo "      no answer from the package index, trying again ..." && continue ;;
            *) continue ;;
        esac
        case $pinned in *" $name "*) ;; *) continue ;; esac
        case $seen in *" $name "*) continue ;; esac
        seen="$seen$name "
        n=$((n + 1))
        [ "$first" = Requirement ] || echo "      fetching $n of $total: $name"
    done
}

rm -f "$venv/.installed" # make's stamp of an earlier run; make sets it again when this one succeeds
# A folder that an interrupted run left half made, or whose Python is gone, is made anew.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "'$python' lacks its venv module, which makes the virtual environment: install it (Debian, Ubuntu: apt-get install python3-venv) or name another Python: make PYTHON=python3.12 ..." >&2
        exit 1
    fi
    echo "[1/3] creating the virtual environment $venv"
    "$python" -m venv --clear "$venv"
fi

started=$(date +%s)
checksum=$(cksum <"$lock")
if [ "$(cat "$record" 2>/dev/null)" = "$checksum" ]; then
    echo "[2/3] the pinned dependencies are installed already"
else
    echo "[2/3] installing the pinned dependencies (about 2.6 GB on disk, TensorFlow most of it; a few minutes the first time)"
    rm -f "$record" "$venv/.pip-status"
    # sh has no pipefail: pip's exit code goes through a file.
    {
        code=0
        "$venv/bin/python" -m pip install --disable-pip-version-check --no-input --progress-bar off \
            --require-hashes -r "$lock" 2>&1 || code=$?
        echo "$code" >"$venv/.pip-status"
    } | tee "$log" | progress
    [ "$(cat "$venv/.pip-status" 2>/dev/null)" = 0 ] || fail "Installing the dependencies"
    echo "$checksum" >"$record"
fi

echo "[3/3] installing pgoutlier itself"
"$venv/bin/python" -m pip install --disable-pip-version-check --no-input --no-deps --no-build-isolation -e . \
    >"$log.project" 2>&1 || { mv "$log.project" "$log" && fail "Installing pgoutlier"; }
cat "$log.project" >>"$log" && rm "$log.project"
"$venv/bin/python" -m compileall -q detector db models_store worker migrations pgoutlier
echo "      ready after $(($(date +%s) - started)) s: $venv/bin/pgoutlier --help"
