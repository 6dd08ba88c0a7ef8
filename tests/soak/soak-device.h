/*
 * QEMU with its disks, as the soak's driver sees them
 *
 * Knows how a virtio-blk-pci device is found, started, left and unplugged any
 * number of times while QEMU's main loop runs freely, which of QEMU's eventfds
 * take available buffer notifications, and how used buffer notifications
 * arrive: there is no vCPU to be interrupted, so each vector is made to write
 * to a word of guest memory.  Does not know rings or requests.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_SOAK_SOAK_DEVICE_H
#define TESTS_SOAK_SOAK_DEVICE_H

#include "bench-pci.h"

#define SOAK_F_FLUSH            9
#define SOAK_F_DISCARD          13
#define SOAK_F_WRITE_ZEROES     14
#define SOAK_F_RING_RESET       40

#define SOAK_STATUS_NEEDS_RESET 64

/* How far the interrupt words are apart */
#define SOAK_IRQ_STEP           64

typedef struct SoakDevice {
    BenchDevice parent;         /* features, queues, memory */
    BenchQtest *qt;
    bool beside;                /* another device has started QEMU */
    BenchPciKind kind;
    BenchPci pci;
    unsigned wanted_queues;
    uint64_t irq;               /* guest address of the first word */
    int64_t tick_us;            /* when the last tick was */
} SoakDevice;

/* PCI slots of the disk, and of one beside it */
#define SOAK_SLOT               4
#define SOAK_SLOT_BESIDE        5

/**
 * soak_device_new: start QEMU; nothing is done to its disk
 * @argv: NULL-terminated, see bench_qemu_new(); the disk is in SOAK_SLOT
 * @queues: to be used
 * @ram: becomes the guest's RAM
 * @mem: part of it, for this disk; outlives the device
 *
 * Returns: NULL with @errp set, and no process left, if QEMU does not start
 */
SoakDevice *soak_device_new(char **argv, unsigned queues,
                            const BenchMemory *ram, BenchMemory *mem,
                            GError **errp);

/**
 * soak_device_beside: another disk of the same QEMU, which need not be there
 * @first: outlives it
 * @mem: part of its RAM, for this disk; outlives the device
 */
SoakDevice *soak_device_beside(const SoakDevice *first, BenchMemory *mem);

/**
 * soak_device_replace: QEMU is killed, and another takes over its disk
 * @argv, @ram: as for soak_device_new()
 *
 * To be called for the first disk, and after that for the one beside it.
 *
 * Returns: false with @errp set if the other QEMU does not start
 */
bool soak_device_replace(SoakDevice *dev, char **argv, const BenchMemory *ram,
                         GError **errp);

/**
 * soak_device_free: end QEMU, if that was started for this disk
 * @dev: may be NULL
 */
void soak_device_free(SoakDevice *dev);

/**
 * soak_device_probe: find the disk, which is new or had its bus reset
 *
 * Returns: false with @errp set if there is none
 */
bool soak_device_probe(SoakDevice *dev, GError **errp);

/**
 * soak_device_reset: write 0 to the device's status, and negotiate anew
 * @packed: use packed rings if they are offered, else split ones
 * @in_order: likewise
 *
 * Returns: false with @errp set if the device cannot do what is wished
 */
bool soak_device_reset(SoakDevice *dev, bool indirect, bool event_idx,
                       bool packed, bool in_order, GError **errp);

/**
 * soak_device_start: hand the queues over and let the device begin
 *
 * The caller has set the queues' addresses since the reset.
 *
 * Returns: false with @errp set if QEMU does not answer
 */
bool soak_device_start(SoakDevice *dev, GError **errp);

/**
 * soak_device_reset_queue: one queue has nothing in flight and is off (2.6.1)
 *
 * Returns: false with @errp set if the device cannot do that
 *
 * Pair: soak_device_enable_queue()
 */
bool soak_device_reset_queue(SoakDevice *dev, unsigned queue, GError **errp);

/**
 * soak_device_enable_queue: hand it over again; its notifier is the same
 */
bool soak_device_enable_queue(SoakDevice *dev, unsigned queue, GError **errp);

/**
 * soak_device_find_notifiers: find out which eventfds are to be written to
 *
 * QEMU makes new ones each time the device starts, also after a "cont".  Each
 * queue gets a few notifications on the way.
 *
 * Returns: false with @errp set if they are not found
 */
bool soak_device_find_notifiers(SoakDevice *dev, GError **errp);

/**
 * soak_device_no_notifiers: forget them, as they are of no use any more
 */
void soak_device_no_notifiers(SoakDevice *dev);

/**
 * soak_device_take_irq: has the vector of @queue come since it was last asked?
 */
bool soak_device_take_irq(SoakDevice *dev, unsigned queue);

/**
 * soak_device_needs_reset: has the device given up?
 */
bool soak_device_needs_reset(SoakDevice *dev);

/**
 * soak_device_capacity: in sectors, as it is now
 */
uint64_t soak_device_capacity(SoakDevice *dev);

/**
 * soak_device_tick: let the guest's time go on as ours does
 *
 * To be called often, but only while something waits for that time.
 */
void soak_device_tick(SoakDevice *dev);

/**
 * soak_device_eject: tell QEMU that the disk may be unplugged
 */
void soak_device_eject(SoakDevice *dev);

#endif /* TESTS_SOAK_SOAK_DEVICE_H */
