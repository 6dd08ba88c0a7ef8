/*
 * Stand-in for QEMU's qemu/rcu.h in the standalone build of the ring
 *
 * Knows that a memory table has room for the head of an RCU callback.  The
 * test memory frees tables when their last reference goes, without RCU.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QEMU_RCU_H
#define VRING_SHIM_QEMU_RCU_H

struct rcu_head {
    struct rcu_head *next;
    void (*func)(struct rcu_head *head);
};

#endif /* VRING_SHIM_QEMU_RCU_H */
