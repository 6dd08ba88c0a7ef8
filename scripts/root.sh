# shellcheck shell=bash
#
# Debian roots: made by mmdebstrap, entered in namespaces
#
# As root, through sudo where needed.  Whatever runs in a root ends with the
# script that started it, and its mounts go with it.  To be sourced behind
# lib.sh.
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

# shellcheck disable=SC2034  # for the scripts that source this file
ROOT_TOOLS=(mmdebstrap debian-archive-keyring util-linux)

need_root() {
    can_be_root || die "neither root nor sudo is at hand: run this as root"
}

# remove PATH...: what may be root's, and nothing that is mounted below it.
remove() {
    as_root rm -rf --one-file-system -- "$@"
}

holder=

# held LOG COMMAND...: run as root, with all output in build/log/LOG and with
# ninja's progress.  Returns its status.  It has a process group of its own, so
# that end_held can end all of it.
held() {
    local log=$LOGS/$1 status=0
    shift
    need_root
    [ -n "$holder" ] || at_exit end_held
    set -m
    as_root "$@" > >(tee -- "$log" | show_progress) 2>&1 < /dev/null &
    holder=$!
    set +m
    wait "$holder" || status=$?
    # For the last lines of the log.
    wait
    holder=none
    return "$status"
}

# end_held: for the end of the script; SIGHUP is what unshare does not ignore.
end_held() {
    [ "$holder" != none ] || return 0
    as_root kill -HUP -- "-$holder" 2>/dev/null || return 0
    wait
}

# make_debian DIR LOG PACKAGES [OPTION...]: make DIR a root of the base release,
# with more packages, and options of mmdebstrap.  It is there as a whole or not
# at all.
make_debian() {
    local dir=$1 log=$2 packages=$3
    local -a mmdebstrap
    shift 3
    remove "$dir" "$dir.new"
    set_mmdebstrap "$BASE_SUITE" "$dir.new" "$packages" --mode=root "$@"
    if ! held "$log" "${mmdebstrap[@]}"; then
        remove "$dir.new"
        mmdebstrap_failed "$LOGS/$log"
    fi
    as_root mv -- "$dir.new" "$dir"
}
