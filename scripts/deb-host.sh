# shellcheck shell=bash
#
# The packages of scripts/deb, brought to where they are used
#
# A pin for apt, an apt repository, and what is installed on this host.  To be
# sourced by scripts/deb, whose variables it uses.
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

PIN=/etc/apt/preferences.d/qemu-dataplane.pref
SOURCES=qemu-dataplane.sources
HOST_LOG=$LOGS/deb-host.log

# Installed even where nothing of Debian's is.
ALWAYS=(qemu-system-x86 qemu-utils)

# write_pin FILE: more than 1000, so that apt keeps ours whatever is newer. As to
# a "*", apt knows it at the end only.
write_pin() {
    cat > "$1" <<EOF
Explanation: QEMU with the virtio-blk data plane is kept, even when Debian has a
Explanation: newer version, such as a security update. Remove this file, and
Explanation: "apt upgrade" puts Debian's in its place.
Package: src:qemu
Pin: version /[+]dataplane[0-9]+$/
Pin-Priority: 1001
EOF
}

#
# The repository
#

# write_sources DIR KEY: prints them, with the key, so that one file is enough.
write_sources() {
    {
        printf '%s\n' "Types: deb deb-src" "URIs: file:$1" \
            "Suites: ./" "Signed-By:"
        sed 's/^$/./; s/^/ /' "$2"
    }
}

# check_repository DIR: it can be made there.
check_repository() {
    local repository=$1 parent
    parent=$(dirname -- "$repository")
    if ! [ -d "$parent" ] || ! [ -w "$parent" ]; then
        die "$parent is no folder that you can write to; give --repo another"
    fi
    if [ -e "$repository" ] && ! [ -e "$repository/$SOURCES" ] &&
       ! rmdir -- "$repository" 2>/dev/null; then
        die "$repository holds something else: give --repo a new folder"
    fi
}

# make_repository DIR: replaces what an earlier run has made.
make_repository() {
    local repository=$1 new=$1.new log=deb-repository.log
    remove "$new"
    mkdir -- "$new"
    find "$OUTPUT" -maxdepth 1 ! -name '*.buildinfo' ! -name '*.pref' -type f \
        -exec cp -t "$new" -- {} +
    if ! inside "$log" index "$new"; then
        log_tail "$LOGS/$log"
        remove "$new"
        die "the repository cannot be made; see above"
    fi
    write_sources "$repository" "$new/key.asc" > "$new/$SOURCES"
    cp -- "$OUTPUT/qemu-dataplane.pref" "$new"
    remove "$repository"
    mv -- "$new" "$repository"
    say "to use it: cp $repository/$SOURCES /etc/apt/sources.list.d"
}

#
# This host
#

# check_host: the packages need the libraries of their release.
check_host() {
    local name codename
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    name=$(sed -n 's/^PRETTY_NAME="\(.*\)"/\1/p' /etc/os-release)
    [ "$codename" = "$BASE_SUITE" ] ||
        die "this host is ${name:-unknown}, and the packages are for Debian 13:" \
            "build them here without --install, install them there"
}

# on_host WHAT COMMAND...: or say why it failed, and end.
on_host() {
    local what=$1
    shift
    as_root env DEBIAN_FRONTEND=noninteractive "$@" > "$HOST_LOG" 2>&1 \
        < /dev/null && return
    log_tail "$HOST_LOG"
    if no_network "$HOST_LOG"; then
        die "apt cannot reach its mirror to $what: check network and proxy"
    fi
    die "apt cannot $what: mend what it says above"
}

# installed_packages: prints NAME VERSION of QEMU's packages on this host.
installed_packages() {
    # shellcheck disable=SC2016 # dpkg-query's variables
    dpkg-query -W \
        -f '${db:Status-Status} ${source:Package} ${Package} ${Version}\n' |
        sed -n 's/^installed qemu //p'
}

# choose_files: sets files, the packages that this host is to have.
choose_files() {
    local file name built=" " wanted
    wanted=" ${ALWAYS[*]} $(installed_packages | cut -d ' ' -f 1 | tr '\n' ' ')"
    for file in "$OUTPUT"/*.deb; do
        name=${file##*/}
        name=${name%%_*}
        built+="$name "
        [[ $wanted != *" $name "* ]] || files+=("$file")
    done
    for name in $wanted; do
        case $name in
        qemu-system|qemu-system-*)
            [[ $built == *" $name "* ]] || [ "$name" = qemu-system-data ] ||
                [ "$name" = qemu-system-xen ] ||
                die "$name is installed, and needs Debian's own" \
                    "qemu-system-common: remove it first"
            ;;
        esac
    done
}

install_on_host() {
    local -a files=() apt=(apt-get install -y -q --no-install-recommends --)
    choose_files
    # Nothing may have to go for them, nor may they be older than what is there.
    on_host "install the packages" apt-get -s "${apt[@]:1}" "${files[@]}"
    if grep -q '^Remv ' "$HOST_LOG"; then
        die "they would replace packages, see $HOST_LOG: remove these first"
    fi
    on_host "install the packages" "${apt[@]}" "${files[@]}"
    say "installed: $(installed_packages | grep -F +dataplane | cut -d ' ' -f 1 |
        tr '\n' ' ')"
    say "what runs goes on with the old version until it is started anew"
}

pin_on_host() {
    as_root install -m 644 -- "$OUTPUT/qemu-dataplane.pref" "$PIN"
    say "apt keeps them: $PIN"
}

# debian_version PACKAGE: prints the newest version of its own that apt knows.
debian_version() {
    apt-cache madison -- "$1" |
        awk -F ' *[|] *' '$2 !~ /[+]dataplane/ { print $2; exit }'
}

restore_host() {
    local name version number
    local -a wanted=()
    need_root
    while read -r name version; do
        [[ $version == *+dataplane* ]] || continue
        number=$(debian_version "$name")
        [ -n "$number" ] ||
            die "apt knows no $name of Debian: run apt-get update"
        wanted+=("$name=$number")
    done < <(installed_packages)
    if [ ${#wanted[@]} -gt 0 ]; then
        on_host "install Debian's packages" apt-get install -y -q \
            --no-install-recommends --allow-downgrades -- "${wanted[@]}"
    fi
    as_root rm -f -- "$PIN"
    say "Debian's packages are installed: ${wanted[*]:-there were no others}"
}
