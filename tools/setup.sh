#!/usr/bin/env bash
# Make the environment in tools/venv, or bring it up to date; returns at once where it is.
#
# Needs only Linux, a network and a Python 3.11 to 3.13 on PATH. Safe to call at any time and several
# times at once: what an interrupted call left behind is replaced by the next one.
set -euo pipefail

UV_VERSION=0.13.8
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
venv=$root/tools/venv
stamp=$venv/.complete        # written last; holds what the environment was made from
unfinished=$venv/.unfinished # there while packages are being installed

fail() {
    echo "tools/setup.sh: error: $*" >&2
    exit 1
}

wanted() {
    { echo "$root" && cat tools/requirements.lock setup.py; } | sha256sum | cut -d ' ' -f 1
}

complete() {
    [ -x "$venv/bin/python" ] && [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$(wanted)" ]
}

# A Python that the pinned packages exist for, and that can make environments.
find_python() {
    local name found=""
    for name in python3 python3.12 python3.11 python3.13; do
        command -v "$name" >/dev/null || continue
        if "$name" -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
            2>/dev/null && { "$name" -c 'import ensurepip' || "$name" -m pip --version; } \
            >/dev/null 2>&1; then
            echo "$name"
            return
        fi
        found+=" $name ($("$name" --version 2>&1 | head -n 1))"
    done
    fail "no Python 3.11, 3.12 or 3.13 with its venv module on PATH; found:${found:- none}." \
        "Install one (no root: conda, pyenv or uv) and put it on PATH." \
        "Debian and Ubuntu keep venv in a package of its own, python3-venv"
}

# Whether there is an environment to complete: whole, made in this place, and its Python still there.
usable() {
    [ -x "$venv/bin/uv" ] && [ ! -e "$unfinished" ] && "$venv/bin/python" -c "" 2>/dev/null &&
        grep -q "^command = .* $venv\$" "$venv/pyvenv.cfg"
}

# Where an earlier call was killed half-way, the environment is made anew.
make_venv() {
    local python
    if usable; then
        return
    fi
    python=$(find_python)
    echo "tools/setup.sh: making tools/venv with $("$python" --version)" >&2
    rm -rf "$venv"
    mkdir -p "$venv"
    touch "$unfinished"
    if "$python" -c 'import ensurepip' 2>/dev/null; then
        "$python" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet "uv==$UV_VERSION"
    else
        "$python" -m venv --without-pip "$venv"
        "$python" -m pip --python "$venv/bin/python" install --quiet "uv==$UV_VERSION"
    fi
}

install_packages() {
    local uv=("$venv/bin/uv" pip install --python "$venv/bin/python")
    [ -t 2 ] || uv+=(--quiet) # two hundred lines for nobody
    echo "tools/setup.sh: installing the packages of tools/requirements.lock (some minutes)" >&2
    touch "$unfinished"
    rm -f "$stamp"
    # pip trusts the machine's own certificates; uv does where it is told to.
    if [ -z "${SSL_CERT_FILE:-}" ] && [ -r /etc/ssl/certs/ca-certificates.crt ]; then
        export SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
    fi
    "${uv[@]}" --no-deps -r tools/requirements.lock
    "${uv[@]}" --no-deps --no-build-isolation --editable .
    rm -f "$unfinished"
}

complete && exit 0
# Two calls at once: the second waits, and finds the work done. A kill frees the lock.
exec 9>tools/.setup.lock
if command -v flock >/dev/null; then
    flock 9
fi
complete && exit 0
make_venv
install_packages
wanted >"$stamp.tmp"
mv "$stamp.tmp" "$stamp"
echo "tools/setup.sh: tools/venv is ready" >&2
