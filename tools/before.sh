#!/usr/bin/env bash
# Shows a fault as it was before its mend: runs tests as they are in a commit, on the sources of the commit before it.
#
#     tools/before.sh COMMIT TEST...
#
# COMMIT may be a part of its subject, after ":/". A test that the commit added for its mend fails. tests/conftest.py is
# taken from the commit before too, because it imports the sources. Run it in the environment of `make test`; nothing is
# compiled.
set -euo pipefail
cd "$(dirname "$0")/.."
commit=$(git rev-parse --short "$(git rev-parse "$1")^{commit}")
folder=build/before/$commit
shift
python=$PWD/.venv/bin/python

rm -rf "$folder"
mkdir -p "$folder"
git archive "$commit" | tar -x -C "$folder"
rm -r "$folder/src/rendezvous"
git archive "$commit^" src/rendezvous tests/conftest.py | tar -x -C "$folder"
if [ -d build/etcd ]; then mkdir -p "$folder/build" && ln -s "$PWD/build/etcd" "$folder/build/etcd"; fi
cd "$folder"
PYTHONPATH=$PWD/src RENDEZVOUS_NO_EXTENSIONS=1 exec "$python" -m pytest -p no:cacheprovider -q "$@"
