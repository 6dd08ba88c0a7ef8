# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
#
# Some of what a QEMU like Debian's can do beside disks, each tried once
#
# To be sourced by a test that has set PLACE, a folder for files, and in whose
# PATH the QEMU is. Prints "ok NAME" or "not ok NAME: REASON" for each, and
# counts in failures what went wrong.

GUARD=300                       # seconds; ends what hangs, measures nothing
failures=0

# check NAME COMMAND...: a result.  Returns the command's.
check() {
    local name=$1 said
    shift
    if said=$("$@" 2>&1); then
        printf 'ok %s\n' "$name"
        return
    fi
    failures=$((failures + 1))
    printf 'not ok %s: %s\n' "$name" "$(tail -n 3 <<< "$said" | tr '\n' ' ')"
    return 1
}

# must NAME COMMAND...: without it, nothing that follows makes sense.
must() {
    check "$@" || exit 1
}

# until_true COMMAND...: wait for it.
until_true() {
    local end=$((SECONDS + GUARD))
    until "$@" > /dev/null 2>&1; do
        if [ "$SECONDS" -ge "$end" ]; then
            printf 'waited in vain for: %s\n' "$*"
            return 1
        fi
        sleep 0.1
    done
}

# starts OPTION...: a QEMU with it gets as far as its monitor.
starts() {
    local status=0
    echo quit | timeout "$GUARD" qemu-system-x86_64 -S -nodefaults \
        -display none -monitor stdio "$@" > "$PLACE/out" 2>&1 || status=$?
    cat "$PLACE/out"
    [ "$status" -eq 0 ] &&
        ! grep -iE 'fail|error|not (available|compiled)' "$PLACE/out"
}

tpm() {
    local pid status=0
    command -v swtpm > /dev/null || { echo "swtpm is missing"; return 1; }
    mkdir -p "$PLACE/tpm"
    swtpm socket --tpm2 --tpmstate "dir=$PLACE/tpm" \
        --ctrl "type=unixio,path=$PLACE/tpm/socket" &
    pid=$!
    until_true test -S "$PLACE/tpm/socket"
    starts -chardev "socket,id=c0,path=$PLACE/tpm/socket" \
        -tpmdev emulator,id=t0,chardev=c0 -device tpm-tis,tpmdev=t0 || status=$?
    kill "$pid" 2> /dev/null
    wait "$pid"
    return "$status"
}

luks() {
    rm -f "$PLACE/luks"
    qemu-img create -f luks --object secret,id=s0,data=secret \
        -o key-secret=s0,iter-time=10 "$PLACE/luks" 1M &&
        starts -object secret,id=s0,data=secret -blockdev \
            "driver=luks,node-name=n0,key-secret=s0,file.driver=file,`
                `file.filename=$PLACE/luks" -object iothread,id=i0 \
            -device virtio-blk-pci,drive=n0,iothread=i0
}

# loads IMAGE: its driver tries to find the server, which is not there.
loads() {
    timeout "$GUARD" qemu-img info "$1" > "$PLACE/out" 2>&1
    cat "$PLACE/out"
    ! grep -iE 'unknown protocol|module|not supported' "$PLACE/out"
}

try_features() {
    check "VNC" starts -vnc "unix:$PLACE/vnc" -device VGA
    check "SPICE" starts \
        -spice "unix=on,addr=$PLACE/spice,disable-ticketing=on" -device qxl-vga
    check "TPM" tpm
    check "LUKS" luks
    check "user network" starts -netdev user,id=n0 \
        -device virtio-net-pci,netdev=n0
    check "RBD" loads rbd:pool/image:mon_host=127.0.0.1:client_mount_timeout=1
    check "iSCSI" loads iscsi://127.0.0.1:1/iqn.none/0
}
