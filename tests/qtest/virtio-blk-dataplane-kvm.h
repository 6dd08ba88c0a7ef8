/*
 * A vCPU in KVM that takes interrupts and kicks, for the qtests of the plane
 *
 * Without KVM an interrupt is a write to memory, made by the main loop, and a
 * kick is a call within QEMU.  With it, an interrupt goes from an eventfd to
 * the vCPU within the kernel (irqfd), and so does a kick in the other direction
 * (ioeventfd).  The vCPU runs a few instructions of a firmware of our own: it
 * halts, counts interrupts by their vector, and writes to a port when told to.
 *
 * Used by virtio-blk-dataplane-common.c with DP_ACCEL=kvm in the environment.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_BLK_DATAPLANE_KVM_H
#define TESTS_QTEST_VIRTIO_BLK_DATAPLANE_KVM_H

#include "virtio-blk-dataplane-common.h"

/**
 * dp_kvm_wanted: does the environment ask for it?
 */
bool dp_kvm_wanted(void);

/**
 * dp_kvm_refusal: why it cannot be had, or NULL; the vCPU has been tried out
 */
const char *dp_kvm_refusal(void);

/**
 * dp_kvm_args: options of QEMU, to be freed by the caller
 */
char *dp_kvm_args(void);

/**
 * dp_kvm_init: wait until the vCPU is ready
 */
void dp_kvm_init(DpVm *vm);

/**
 * dp_kvm_set_vector: make an MSI-X entry interrupt the vCPU
 * @vector: of the vCPU; chosen if it is 0
 *
 * Returns: how many interrupts came by that vector until now
 */
uint32_t dp_kvm_set_vector(DpDisk *disk, unsigned entry, unsigned *vector);

/**
 * dp_kvm_irq: did interrupts come since @seen, which is brought up to date?
 */
bool dp_kvm_irq(DpVm *vm, unsigned vector, uint32_t *seen);

/**
 * dp_kvm_kick: have the vCPU kick the device
 *
 * Returns: false if it cannot, as the device has no ports
 */
bool dp_kvm_kick(DpDisk *disk);

#endif /* TESTS_QTEST_VIRTIO_BLK_DATAPLANE_KVM_H */
