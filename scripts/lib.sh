# shellcheck shell=bash
#
# What the scripts share
#
# Messages, package installation, private package fetching, the lock on
# build/, stamps, and long commands with a log and a progress line.  Knows the
# layout of build/ and Debian's tools; knows nothing of QEMU.  To be sourced by
# a script that has set -euo pipefail.
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
BUILD=$ROOT/build
LOGS=$BUILD/log
STAMPS=$BUILD/.stamps
# shellcheck disable=SC2034  # for the scripts that source this file
PYTHON=/usr/bin/python3
PROGRAM=${0##*/}

# The Debian release whose source package is the base of everything.
BASE_SUITE=trixie
APT_DIR=$BUILD/apt
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

#
# Messages
#

step_now=0
step_count=0

# steps N: how many calls of step() follow.
steps() {
    step_now=0
    step_count=$1
}

# step TEXT: the script enters its next step.
step() {
    step_now=$((step_now + 1))
    printf '[%d/%d] %s\n' "$step_now" "$step_count" "$*"
}

# say TEXT: a line that belongs to the current step.
say() {
    printf '      %s\n' "$*"
}

warn() {
    printf '%s: warning: %s\n' "$PROGRAM" "$*" >&2
}

# die TEXT: say what is wrong and what to do about it, and end.
die() {
    printf '%s: %s\n' "$PROGRAM" "$*" >&2
    exit 1
}

# bad_usage TEXT: the command line is wrong.
bad_usage() {
    printf '%s: %s (see %s --help)\n' "$PROGRAM" "$*" "$PROGRAM" >&2
    exit 2
}

#
# Clean-up at exit, last registered first
#

exit_commands=()

# at_exit COMMAND: one shell command to be run however the script ends.
at_exit() {
    if [ ${#exit_commands[@]} -eq 0 ]; then
        trap run_exit_commands EXIT
        trap 'exit 129' HUP
        trap 'exit 130' INT
        trap 'exit 143' TERM
    fi
    exit_commands+=("$1")
}

run_exit_commands() {
    local status=$? i
    trap - EXIT
    trap '' HUP INT TERM
    for ((i = ${#exit_commands[@]} - 1; i >= 0; i--)); do
        eval "${exit_commands[i]}" || true
    done
    exit "$status"
}

#
# The build folder: lock, room, stamps
#

# take_lock: only one script at a time may change build/.  A script that is
# called by the holder of the lock shares it.  Whatever is left running in the
# background must have been started with "9>&-", as it would keep the lock.
take_lock() {
    if ! mkdir -p "$LOGS" "$STAMPS" 2>/dev/null ||
       ! [ -w "$BUILD" ] || ! [ -w "$LOGS" ] || ! [ -w "$STAMPS" ]; then
        die "cannot write to $BUILD: make it writable for user $(id -un)"
    fi
    if lock_is_inherited; then
        return
    fi
    exec 9>>"$BUILD/.lock"
    flock -n 9 ||
        die "another run is using $BUILD: wait until it has finished"
    export DATAPLANE_LOCK_OF=$BUILD
}

# The variable alone proves nothing, as a user may have exported it: the open
# file must be there, too.
lock_is_inherited() {
    [ "${DATAPLANE_LOCK_OF-}" = "$BUILD" ] &&
        [ /dev/fd/9 -ef "$BUILD/.lock" ] && flock -n 9
}

# release_lock: before a part that only reads build/ and may last long.
release_lock() {
    exec 9>&-
    unset DATAPLANE_LOCK_OF
}

# patched_unit_tests: prints QEMU's own unit tests that the patches extend, also
# by their stubs.
patched_unit_tests() {
    sed -n -E 's#^\+\+\+ b/(tests/unit/(test-[^.]*|[^.]*-test))(-stubs)?\.c$#\1#p' \
        "$ROOT"/patches/*.patch | sort -u
}

# need_space MIB [DIR]: refuse to begin what the disk of DIR, which is build/ by
# default, has no room for.
need_space() {
    local want=$1 where=${2-$BUILD} have dir mend="free some"
    dir=$where
    [ "$where" != "$BUILD" ] ||
        mend+=", or make build/ a symbolic link to a larger disk"
    while ! [ -e "$dir" ]; do
        dir=$(dirname -- "$dir")
    done
    have=$(($(df --output=avail -k -- "$dir" | tail -n 1) / 1024))
    [ "$have" -ge "$want" ] ||
        die "no space: $want MiB are needed in $where, $have MiB are free;" \
            "$mend"
}

# stamp_is NAME KEY: true if step NAME was finished with the same KEY.
stamp_is() {
    [ -f "$STAMPS/$1" ] && [ "$(<"$STAMPS/$1")" = "$2" ]
}

# stamp NAME KEY: step NAME is finished.
stamp() {
    printf '%s\n' "$2" > "$STAMPS/.$1.new"
    mv -f -- "$STAMPS/.$1.new" "$STAMPS/$1"
}

# unstamp NAME: step NAME has to be done again.
unstamp() {
    rm -f -- "$STAMPS/$1"
}

#
# Long commands
#

# log_tail LOG: the end of a log, for the reader of an error.
log_tail() {
    [ -s "$1" ] || return 0
    printf -- '----- last lines of %s\n' "$1" >&2
    tail -n 30 -- "$1" >&2
    printf -- '-----\n' >&2
}

# logged LOG COMMAND...: run with all output in build/log/LOG; on failure show
# the end of it.  Returns the command's status.
logged() {
    local log=$LOGS/$1 status=0
    shift
    "$@" > "$log" 2>&1 < /dev/null || status=$?
    [ "$status" -eq 0 ] || log_tail "$log"
    return "$status"
}

# show_progress: reads ninja's "[done/total] what" lines; on a terminal one
# line is rewritten, elsewhere a line is printed at every tenth.
show_progress() {
    local line count total tenth last=-1 tty=0 width re='^\[([0-9]+)/([0-9]+)\]'
    if [ -t 1 ]; then
        tty=1
        width=$(tput cols 2>/dev/null) || width=80
    fi
    while IFS= read -r line; do
        [[ $line =~ $re ]] || continue
        if [ "$tty" -eq 1 ]; then
            line="      $line"
            printf '\r\033[K%s' "${line:0:width - 1}"
            continue
        fi
        count=${BASH_REMATCH[1]}
        total=${BASH_REMATCH[2]}
        tenth=$((count * 10 / total))
        if [ "$total" -ge 20 ] && [ "$tenth" -gt "$last" ]; then
            last=$tenth
            say "$((count * 100 / total)) % ($count of $total)"
        fi
    done
    if [ "$tty" -eq 1 ]; then
        printf '\r\033[K'
    fi
}

# run_ninja LOG DIR ARGUMENT...: build in DIR with progress; all output goes
# to build/log/LOG, the end of which is shown on failure.
run_ninja() {
    local log=$LOGS/$1 dir=$2 status=0
    shift 2
    NINJA_STATUS='[%f/%t] ' ninja -C "$dir" "$@" 2>&1 < /dev/null |
        tee -- "$log" | show_progress || status=$?
    [ "$status" -eq 0 ] || log_tail "$log"
    return "$status"
}

#
# The host's packages
#

# missing_packages PACKAGE...: prints those that are not installed.
missing_packages() {
    local package
    declare -A installed=()
    while read -r package; do
        installed[$package]=1
    done < <(dpkg-query -W -f '${db:Status-Status} ${Package}\n' -- "$@" \
                 2>/dev/null | sed -n 's/^installed //p')
    for package; do
        [ -n "${installed[$package]-}" ] || printf '%s\n' "$package"
    done
}

# real_packages NAME...: prints "NAME PACKAGE" for each that the host's apt
# knows; that is the same, or for a virtual package the first that provides it.
real_packages() {
    local name version provider
    while read -r name version; do
        if [ "$version" != "(none)" ]; then
            printf '%s %s\n' "$name" "$name"
            continue
        fi
        provider=$(LC_ALL=C apt-cache showpkg -- "$name" |
            awk 'on && !found++ { print $1 } /^Reverse Provides:/ { on = 1 }')
        [ -z "$provider" ] || printf '%s %s\n' "$name" "$provider"
    done < <(LC_ALL=C apt-cache policy -- "$@" 2>/dev/null |
        awk '/^[^ ]+:$/ { name = substr($1, 1, length($1) - 1) }
             $1 == "Candidate:" { print name, $2 }')
}

# as_root COMMAND...: through sudo where needed.  Only after can_be_root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -t 0 ]; then
        sudo "$@"
    else
        sudo -n "$@"
    fi
}

can_be_root() {
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null || return
    # With a terminal sudo asks for the password, and what it is for is told.
    if [ -t 0 ]; then
        sudo -v -p '      sudo, to install packages; password for %u: '
    else
        sudo -n true 2>/dev/null
    fi
}

# no_network LOG: true if the log shows that nothing could be fetched; false if
# something was, which was not what it should be.
no_network() {
    ! grep -qE 'unexpected size|Hash Sum mismatch' -- "$1" &&
        grep -qE 'Could not (resolve|connect)|Temporary failure|'`
            `'Failed to fetch|Unable to (fetch|connect)|'`
            `'Connection (failed|refused|timed out)' -- "$1"
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -q --no-install-recommends -- "$@"
}

# exclusively COMMAND...: apt does not wait for another that changes the same
# lists or files; parts of scripts/check that run at once do here.  The command
# must die if it fails.
exclusively() {
    local lock
    mkdir -p "$BUILD"
    exec {lock}>>"$BUILD/.apt-lock"
    flock "$lock"
    "$@"
    exec {lock}>&-
}

# install_packages PACKAGE...: make sure that Debian packages of the host's
# own release are there.  Silent, and without apt, if nothing is missing.
install_packages() {
    local -a missing
    require_debian
    mapfile -t missing < <(missing_packages "$@")
    [ ${#missing[@]} -gt 0 ] || return 0
    can_be_root ||
        die "packages are missing and neither root nor sudo is at hand;" \
            "install them with: apt-get install --no-install-recommends" \
            "${missing[*]}"
    exclusively install_missing "${missing[@]}"
}

install_missing() {
    local -a missing=("$@")
    local log=apt-install.log
    say "installing ${missing[*]}"
    # Lists that are there are good enough as long as they work.
    apt_install "${missing[@]}" > "$LOGS/$log" 2>&1 < /dev/null && return
    say "updating the package lists"
    # A third party's broken list is no reason to stop.
    as_root apt-get update -q > "$LOGS/apt-update.log" 2>&1 < /dev/null || true
    apt_install "${missing[@]}" > "$LOGS/$log" 2>&1 < /dev/null && return
    if no_network "$LOGS/$log" || no_network "$LOGS/apt-update.log"; then
        die "apt cannot reach its mirror to install ${missing[*]}:" \
            "check network and proxy (see $LOGS/$log)"
    fi
    log_tail "$LOGS/$log"
    die "apt cannot install ${missing[*]}: mend what apt says above," \
        "then run this again"
}

require_debian() {
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null
    then
        die "this needs Debian 12 or 13: there is no apt on this system"
    fi
}

#
# Packages of the host's release, fetched and verified but never installed
#

HOST_DEB_LOG=$LOGS/host-deb.log

update_host_lists() {
    say "updating the package lists"
    can_be_root ||
        die "the package lists are out of date and neither root nor sudo is" \
            "at hand; update them with: apt-get update"
    as_root apt-get update -q > "$LOGS/apt-update.log" 2>&1 < /dev/null || true
}

# download_host_deb PACKAGE DIR: with the name that apt gives the file.  Returns
# apt's status.
download_host_deb() {
    (cd -- "$2" && apt-get -q download -- "$1") > "$HOST_DEB_LOG" 2>&1
}

# fetch_host_deb PACKAGE DIR: the same, or say why not, and end.
fetch_host_deb() {
    download_host_deb "$1" "$2" && return
    # What a newer version replaced has gone from the mirror.
    update_host_lists
    download_host_deb "$1" "$2" && return
    if no_network "$HOST_DEB_LOG"; then
        die "apt cannot reach its mirror to fetch $1: check network and" \
            "proxy (see $HOST_DEB_LOG)"
    fi
    log_tail "$HOST_DEB_LOG"
    die "apt cannot fetch $1: mend what apt says above"
}

#
# Packages of the base release, fetched and verified but never installed
#

# host_mirror: prints the URI of the Debian archive that the host's apt uses.
host_mirror() {
    local codename uri
    codename=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    # Without downloaded lists apt does not know the origin: the release's
    # name decides then.
    # shellcheck disable=SC2016  # apt's variables, not the shell's
    uri=$(env -u APT_CONFIG apt-get indextargets \
              --format '$(REPO_URI) $(ORIGIN) $(LABEL) $(RELEASE) $(CODENAME)' \
              'Created-By: Packages' 2>/dev/null |
          awk -v codename="$codename" '
              $1 ~ /^(cdrom|file|copy):/ { next }
              $2 == "Debian" && $3 == "Debian" && $5 == codename {
                  print 1, $1
              }
              $2 == codename { print 2, $1 }' |
          sort -s -k 1,1n | awk 'NR == 1 { print $2 }')
    [ -n "$uri" ] ||
        die "the host's apt knows no Debian mirror: add your mirror's line for" \
            "$codename main to /etc/apt/sources.list.d (or give QEMU_SRC=DIR)"
    printf '%s\n' "$uri"
}

# apt_proxy: prints the proxy that apt uses, as mmdebstrap has no eye for it.
apt_proxy() {
    local proxy=
    eval "$(env -u APT_CONFIG apt-config shell proxy Acquire::http::Proxy)"
    proxy=${http_proxy-$proxy}
    [ "$proxy" = DIRECT ] || printf '%s' "$proxy"
}

# set_mmdebstrap SUITE TARGET PACKAGES [OPTION...]: sets the caller's array
# "mmdebstrap" to the command that makes a root of Debian from the host's mirror,
# with more packages, which are separated by commas.
# shellcheck disable=SC2034
set_mmdebstrap() {
    local suite=$1 target=$2 packages=$3 mirror via
    shift 3
    mirror=$(host_mirror)
    via=$(apt_proxy)
    mmdebstrap=(env TMPDIR=/tmp ${via:+"http_proxy=$via"}
                mmdebstrap --keyring="$KEYRING" --include="$packages" "$@"
                "$suite" "$target" "$mirror")
}

# mmdebstrap_failed LOG [HINT]: ends the script.
mmdebstrap_failed() {
    if no_network "$1"; then
        die "mmdebstrap cannot fetch from apt's mirror: check network and" \
            "proxy (see $1)"
    fi
    log_tail "$1"
    die "mmdebstrap failed: mend what it says above${2:+; $2}"
}

# host_security_mirror: prints the URI of Debian's security updates, if the
# host's apt uses them.
host_security_mirror() {
    # shellcheck disable=SC2016  # apt's variables, not the shell's
    env -u APT_CONFIG apt-get indextargets \
        --format '$(REPO_URI) $(ORIGIN) $(LABEL)' \
        'Created-By: Packages' 2>/dev/null |
        awk '$2 == "Debian" && $3 == "Debian-Security" && !seen++ { print $1 }'
}

# write_security: the base release's security updates, for who wants them.
write_security() {
    local file=$APT_DIR/sources.list.d/security.sources mirror=
    [ "${want_security-no}" = no ] || mirror=$(host_security_mirror)
    if [ -z "$mirror" ]; then
        rm -f -- "$file"
        return
    fi
    cat > "$file" <<EOF
Types: deb deb-src
URIs: $mirror
Suites: $BASE_SUITE-security
Components: main
Signed-By: $KEYRING
EOF
}

# private_apt COMMAND...: run apt-get, apt-cache with the private configuration.
private_apt() {
    APT_CONFIG=$APT_DIR/apt.conf "$@"
}

# The host's own apt is not touched: configuration, lists and cache of the
# private one stand in build/apt.  How to reach a mirror (proxies and the like)
# is taken over from the host.
write_private_apt() {
    local mirror=$1 arch
    arch=$(dpkg --print-architecture)
    mkdir -p "$APT_DIR"/{sources.list.d,conf.d,preferences.d,lists/partial} \
        "$APT_DIR"/cache/archives/partial
    cat > "$APT_DIR/sources.list.d/base.sources" <<EOF
Types: deb deb-src
URIs: $mirror
Suites: $BASE_SUITE $BASE_SUITE-updates
Components: main
Signed-By: $KEYRING
EOF
    write_security
    {
        env -u APT_CONFIG apt-config dump |
            grep -E '^Acquire::[^ ]+ ".+";$' |
            grep -vE '^Acquire::(Allow|IndexTargets)' || true
        cat <<EOF
Dir::Etc::Main "/dev/null";
Dir::Etc::Parts "$APT_DIR/conf.d";
Dir::Etc::SourceList "/dev/null";
Dir::Etc::SourceParts "$APT_DIR/sources.list.d";
Dir::Etc::Preferences "/dev/null";
Dir::Etc::PreferencesParts "$APT_DIR/preferences.d";
Dir::Etc::Trusted "/dev/null";
Dir::Etc::TrustedParts "$APT_DIR/conf.d";
Dir::State::Lists "$APT_DIR/lists";
Dir::Cache "$APT_DIR/cache";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "";
APT::Get::AllowUnauthenticated "false";
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::Languages "none";
Acquire::Retries "2";
EOF
    } > "$APT_DIR/apt.conf.new"
    mv -f -- "$APT_DIR/apt.conf.new" "$APT_DIR/apt.conf"
}

# update_private_apt: fetch the lists, once per run at most.
update_private_apt() {
    [ -z "${private_apt_is_fresh-}" ] || return 0
    exclusively fetch_private_lists
    private_apt_is_fresh=1
}

fetch_private_lists() {
    local mirror log=$LOGS/private-apt.log
    [ -r "$KEYRING" ] ||
        die "$KEYRING is missing: install debian-archive-keyring"
    mirror=$(host_mirror)
    write_private_apt "$mirror"
    say "fetching the package lists of $BASE_SUITE"
    if ! private_apt apt-get update -q -o APT::Update::Error-Mode=any \
             > "$log" 2>&1 < /dev/null; then
        if no_network "$log"; then
            die "cannot fetch Debian's package lists from $mirror: check" \
                "network and proxy, or give QEMU_SRC=DIR (see $log)"
        fi
        log_tail "$log"
        die "apt refuses the package lists of $BASE_SUITE from $mirror:" \
            "mend what it says above"
    fi
}

# fetch_deb PACKAGE DIR: put the base release's PACKAGE into DIR as PACKAGE.deb,
# verified by apt's chain of signatures.
fetch_deb() {
    local package=$1 dir=$2 scratch log=$LOGS/private-apt.log file
    update_private_apt
    scratch=$(mktemp -d -p "$dir")
    if ! (cd -- "$scratch" &&
          private_apt apt-get download -q -- "$package") \
             > "$log" 2>&1 < /dev/null; then
        rm -rf -- "$scratch"
        log_tail "$log"
        die "cannot fetch the package $package of $BASE_SUITE: check network" \
            "and proxy"
    fi
    for file in "$scratch"/*.deb; do
        mv -f -- "$file" "$dir/$package.deb"
    done
    rm -rf -- "$scratch"
}
