/*
 * Stand-in for QEMU's qemu/atomic.h in the standalone build of the ring
 *
 * Knows the compiler's atomic built-ins and what ThreadSanitizer makes of
 * them.
 *
 * ThreadSanitizer does not understand fences: code whose order rests on them
 * alone would be reported as a race although it is right.  Under it a barrier
 * is therefore an atomic read-modify-write, with the same ordering, of one
 * variable that all threads share.  A thread that passes a barrier after
 * another one has then "synchronised with" it, which is what the fences mean
 * when a store behind the one was seen by a load before the other.  The price:
 * two barriers that happen to follow each other order more than two fences
 * would, so that a missing barrier is reported often rather than always.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef VRING_SHIM_QEMU_ATOMIC_H
#define VRING_SHIM_QEMU_ATOMIC_H

#ifdef __has_feature
#if __has_feature(thread_sanitizer)
#define VRING_SHIM_TSAN 1
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define VRING_SHIM_TSAN 1
#endif

#define barrier() __asm__ volatile("" : : : "memory")

#ifdef VRING_SHIM_TSAN
extern int vring_shim_fence;
#define VRING_SHIM_FENCE(order) \
    ((void)__atomic_fetch_add(&vring_shim_fence, 0, order))
/* A barrier's comment stands where it is used. */
#define smp_mb() VRING_SHIM_FENCE(__ATOMIC_SEQ_CST)
#define smp_wmb() VRING_SHIM_FENCE(__ATOMIC_ACQ_REL)
#define smp_rmb() VRING_SHIM_FENCE(__ATOMIC_ACQ_REL)
#else
#define smp_mb() __atomic_thread_fence(__ATOMIC_SEQ_CST)
#define smp_wmb() __atomic_thread_fence(__ATOMIC_RELEASE)
#define smp_rmb() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#endif

#define qatomic_read(ptr) __atomic_load_n(ptr, __ATOMIC_RELAXED)
#define qatomic_set(ptr, val) __atomic_store_n(ptr, val, __ATOMIC_RELAXED)
#define qatomic_load_acquire(ptr) __atomic_load_n(ptr, __ATOMIC_ACQUIRE)
#define qatomic_store_release(ptr, val) \
    __atomic_store_n(ptr, val, __ATOMIC_RELEASE)
#define qatomic_inc(ptr) ((void)__atomic_fetch_add(ptr, 1, __ATOMIC_SEQ_CST))
#define qatomic_fetch_dec(ptr) __atomic_fetch_sub(ptr, 1, __ATOMIC_SEQ_CST)

#endif /* VRING_SHIM_QEMU_ATOMIC_H */
