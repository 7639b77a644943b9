#!/bin/sh
# debian.sh SUITE FOLDER: unpack the etcd of a suite of Debian, such as sid, into FOLDER/etcd.
#
# Nothing is installed, and apt's own configuration and state stay as they are: the package lists of the suite are
# downloaded into a temporary folder, from the mirror that this machine uses. On a machine that is not Debian nothing is
# done, and FOLDER/etcd is not there afterwards.
set -eu

suite=$1 folder=$2
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 2>/dev/null | head -n 1) || true
if [ -z "$mirror" ] || [ ! -e "$keyring" ]; then
  echo "This machine has no package lists of Debian (apt-get update): the etcd of Debian $suite is left out."
  exit 0
fi

temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
cd "$temporary"
mkdir -p lists/partial cache/archives/partial parts
echo "deb [signed-by=$keyring] $mirror $suite main" >sources.list
apt() {
  apt-get -qq -o Dir::Etc::SourceList="$temporary/sources.list" -o Dir::Etc::SourceParts="$temporary/parts" \
    -o Dir::State::Lists="$temporary/lists" -o Dir::Cache="$temporary/cache" \
    -o APT::Sandbox::User="$(id -un)" -o Acquire::Languages=none "$@"
}
apt update
apt download etcd-server
dpkg -x etcd-server_*.deb package
cd "$OLDPWD"
mkdir -p "$folder"
cp "$temporary/package/usr/bin/etcd" "$folder/etcd"
