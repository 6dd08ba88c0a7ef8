# shellcheck shell=bash
#
# Debian's source package of QEMU
#
# Which version is wanted, and how it comes into build/src, verified.  To be
# sourced behind lib.sh.
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

SERIES=10.0                     # the QEMU release that the patches are made for

# check_version DIR WHOSE: the patches are made for one release.
check_version() {
    local version
    if ! [ -f "$1/VERSION" ] || ! [ -f "$1/configure" ]; then
        die "$2 is no QEMU source tree: it has no VERSION or no configure"
    fi
    version=$(<"$1/VERSION")
    case $version in
    "$SERIES".*) ;;
    *)
        die "$2 is QEMU $version: QEMU $SERIES.x is needed"
        ;;
    esac
}

# newest_version: of this release, that the mirror offers.
newest_version() {
    local version newest=
    while read -r version; do
        if [ -z "$newest" ] ||
           dpkg --compare-versions "$version" gt "$newest"; then
            newest=$version
        fi
    done < <(private_apt apt-cache showsrc --only-source qemu 2>/dev/null |
                 sed -n "s/^Version: \(1:${SERIES//./\\.}\..*\)/\1/p")
    [ -n "$newest" ] ||
        die "the mirror offers no QEMU $SERIES in $BASE_SUITE: give a source" \
            "tree with QEMU_SRC=DIR"
    printf '%s\n' "$newest"
}

# sums_match DSC FILE...: the files are those that the .dsc names.
sums_match() {
    local dsc=$1 file
    shift
    for file; do
        [ -f "$file" ] || return 1
        sed -n '/^Checksums-Sha256:/,/^[^ ]/s/^ //p' -- "$dsc" |
            awk -v name="${file##*/}" -v file="$file" \
                '$3 == name { print $1 "  " file }' |
            sha256sum --status --check || return 1
    done
}

# name_source VERSION: sets package, dsc and tarball.
name_source() {
    package=$1
    dsc=$BUILD/src/qemu_${package#*:}.dsc
    tarball=$BUILD/src/qemu_${package#*:}
    tarball=${tarball%-*}.orig.tar.xz
}

# have_source: the package was fetched and verified before.
have_source() {
    [ -f "$STAMPS/fetched" ] || return
    name_source "$(<"$STAMPS/fetched")"
    [ -f "$dsc" ] && sums_match "$dsc" "$tarball"
}

# have_package: the whole source package is there.
have_package() {
    have_source && sums_match "$dsc" "${dsc%.dsc}.debian.tar.xz"
}

# fetch_source: leaves the verified package in build/src.
fetch_source() {
    local log=$LOGS/fetch.log
    update_private_apt
    name_source "$(newest_version)"
    mkdir -p "$BUILD/src"
    say "fetching qemu $package"
    if ! (cd -- "$BUILD/src" &&
          private_apt apt-get source -q --download-only --only-source \
              "qemu=$package") > "$log" 2>&1 < /dev/null; then
        # apt says "Failed to fetch" here, too.
        if grep -qE ' 404 ' -- "$log"; then
            die "Debian's mirror lists qemu $package and has it no more, as" \
                "while a newer one takes its place: run this again in an hour," \
                "or use another mirror (see $log)"
        fi
        if no_network "$log"; then
            die "cannot fetch QEMU's source package: check network and proxy," \
                "or give QEMU_SRC=DIR (see $log)"
        fi
        log_tail "$log"
        die "apt does not accept QEMU's source package; see above"
    fi
    [ -f "$dsc" ] || die "apt fetched no ${dsc##*/}: remove $BUILD/src"
    sums_match "$dsc" "$tarball" ||
        die "$tarball is not what ${dsc##*/} says: remove $BUILD/src"
    stamp fetched "$package"
}
