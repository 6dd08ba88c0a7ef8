# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
#
# Kernels of Debian's packages, and initramfs for them
#
# For tests/guest/prepare and tests/zoned/prepare, to be sourced after
# scripts/lib.sh. Nothing is installed, nothing is mounted. What is made stands
# below the caller's folder $work until it is whole.
#
# shellcheck disable=SC2154 # work

# The Debian packages whose programs are used here
# shellcheck disable=SC2034 # by who sources this
INITRAMFS_PACKAGES=(busybox-static cpio kmod xz-utils)

# kernel_package ALIAS: the package that Debian's name for the kernel of today
# depends on, such as linux-image-6.1.0-1-cloud-amd64.
kernel_package() {
    apt-cache depends "$1" 2>/dev/null |
        sed -n 's/^ *Depends: \(linux-image-[^ <>]*\)$/\1/p' | head -n 1
}

# fetch_kernel ALIAS
fetch_kernel() {
    local package
    package=$(kernel_package "$1")
    if [ -n "$package" ]; then
        say "fetching the guest's kernel: $package"
        download_host_deb "$package" "$work" && return
    fi
    # A kernel that a newer one replaced has gone from the mirror, and the
    # newer one has another name.
    update_host_lists
    package=$(kernel_package "$1")
    [ -n "$package" ] ||
        die "apt knows no package $1: check the host's apt sources"
    fetch_host_deb "$package" "$work"
}

# make_kernel ALIAS FOLDER: unless it is there, FOLDER/kernel, with boot/ and
# lib/modules/ of the package, and its version in the file "release".
make_kernel() {
    local release kernel=$work/kernel
    if [ -e "$2/kernel/release" ]; then
        return
    fi
    fetch_kernel "$1"
    say "unpacking the kernel"
    mkdir "$kernel"
    dpkg-deb -x "$work"/linux-image-*.deb "$kernel"
    release=$(basename "$kernel"/boot/vmlinuz-*)
    release=${release#vmlinuz-}
    # From Debian 13 on, packages may ship the modules below usr/.
    if [ -d "$kernel/usr/lib/modules" ]; then
        mkdir -p "$kernel/lib"
        mv "$kernel/usr/lib/modules" "$kernel/lib/"
    fi
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$kernel" "$release"
    echo "$release" >"$kernel/release"
    rm -rf "$2/kernel"
    mv "$kernel" "$2/kernel"
}

# copy_program PATH ROOT [FOLDER]: with the libraries that it is linked to
copy_program() {
    local library
    install -D -m 755 "$1" "$2/${3-usr/bin}/$(basename "$1")"
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        if [ ! -e "$2$library" ]; then
            install -D -m 755 "$library" "$2$library"
        fi
    done
}

# copy_programs ROOT NAME...: those of the host, and busybox
copy_programs() {
    local program root=$1
    shift
    install -D -m 755 "$(command -v busybox)" "$root/bin/busybox"
    for program; do
        copy_program "$(PATH=$PATH:/usr/sbin:/sbin command -v "$program")" \
            "$root"
    done
}

# copy_modules KERNEL ROOT MODULE...: with those that they need, listed in the
# order of loading in ROOT/inside/modules
copy_modules() {
    local file name module kernel=$1 root=$2
    shift 2
    mkdir -p "$root/lib/modules" "$root/inside"
    for module; do
        PATH=$PATH:/usr/sbin:/sbin modprobe -d "$kernel" \
            -S "$(cat "$kernel/release")" --show-depends "$module" |
            sed -n 's/^insmod \([^ ]*\).*/\1/p'
    done | awk '!seen[$0]++' | while read -r file; do
        name=lib/modules/$(basename "$file")
        case $file in
        *.xz) name=${name%.xz}; xz -dc "$file" >"$root/$name" ;;
        *.zst) name=${name%.zst}; zstd -qdc "$file" >"$root/$name" ;;
        *) cp "$file" "$root/$name" ;;
        esac
        echo "/$name" >>"$root/inside/modules"
    done
}

# pack_initramfs ROOT FILE
pack_initramfs() {
    (cd "$1" && find . | LC_ALL=C sort |
        cpio --quiet --reproducible -o -H newc -R +0:+0) >"$2"
}
