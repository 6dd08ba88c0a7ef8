/*
 * A virtio-pci device behind the qtest socket
 *
 * Knows PCI configuration space and VIRTIO over PCI (VIRTIO 1.3, 4.1), of
 * which it uses the modern interface only.  Does not know what a device does,
 * eventfds or rings.
 *
 * What goes wrong shows in bench_qtest_failed().
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_PCI_H
#define TESTS_BENCH_BENCH_PCI_H

#include "bench-device.h"
#include "bench-qtest.h"

/* Which device is meant, and where its registers shall be */
typedef struct BenchPciKind {
    const char *name;
    uint16_t type;              /* of virtio device (5) */
    uint16_t transitional_id;   /* PCI device ID, 0: has none */
    unsigned slot;              /* 0: the only device of this kind */
    unsigned function;          /* in the slot */
    uint64_t window;            /* above RAM, below the PC's own devices */
    uint32_t bar_step;          /* from one BAR to the next in the window */
} BenchPciKind;

/* Room enough for any BAR of a device that is alone in its window */
#define BENCH_PCI_BAR_STEP 0x01000000u

/*
 * From here on there are only devices that are asked for with their place: a
 * function of one of these slots.
 */
#define BENCH_PCI_PLACES_SLOT 8
#define BENCH_PCI_PLACES ((32 - BENCH_PCI_PLACES_SLOT) * 8)

extern const BenchPciKind bench_pci_blk;

/**
 * bench_pci_blk_at: a disk where there are many
 * @place: below BENCH_PCI_PLACES
 */
BenchPciKind bench_pci_blk_at(unsigned place);

typedef struct BenchPci {
    BenchQtest *qt;
    const BenchPciKind *kind;
    unsigned devfn;
    uint64_t common;            /* addresses of the structures (4.1.4) */
    uint64_t notify;
    uint64_t config;
    uint32_t notify_multiplier;
    uint64_t msix_table;
    uint8_t msix_cap;           /* offset in configuration space */
} BenchPci;

/**
 * bench_pci_init: find the one device of a kind and make it accessible
 * @kind: outlives @pci
 *
 * Returns: false with @errp set if there is none, or more than one, or it is
 *          not a modern one with MSI-X
 */
bool bench_pci_init(BenchPci *pci, const BenchPciKind *kind, BenchQtest *qt,
                    GError **errp);

/**
 * bench_pci_reset: reset the device and say that a driver is there (3.1.1)
 *
 * Returns: the features that the device offers
 */
uint64_t bench_pci_reset(BenchPci *pci);

/**
 * bench_pci_set_features: false with @errp set if the device refuses
 */
bool bench_pci_set_features(BenchPci *pci, uint64_t features, GError **errp);

/* Fields of the common configuration (4.1.4.3) and of the device's own */
unsigned bench_pci_num_queues(BenchPci *pci);
unsigned bench_pci_queue_size(BenchPci *pci, unsigned queue);
uint64_t bench_pci_config64(BenchPci *pci, unsigned offset);
void bench_pci_set_config32(BenchPci *pci, unsigned offset, uint32_t value);

/**
 * bench_pci_enable_msix: let vector i, of @n, write i + 1 to @addr + i * @step
 */
void bench_pci_enable_msix(BenchPci *pci, unsigned n, uint64_t addr,
                           unsigned step);

/**
 * bench_pci_enable_queue: hand a queue over
 * @queue: its index, and its MSI-X vector
 */
void bench_pci_enable_queue(BenchPci *pci, unsigned queue,
                            const BenchQueue *ring);

/**
 * bench_pci_reset_queue: reset a queue, with RING_RESET (4.1.4.3.2)
 *
 * Returns: false if the queue is not off after that
 */
bool bench_pci_reset_queue(BenchPci *pci, unsigned queue);

/**
 * bench_pci_driver_ok: the device may begin
 */
void bench_pci_driver_ok(BenchPci *pci);

/**
 * bench_pci_status: the device status (2.1)
 */
uint8_t bench_pci_status(BenchPci *pci);

/**
 * bench_pci_notify_address: where available buffer notifications go
 */
uint64_t bench_pci_notify_address(BenchPci *pci, unsigned queue);

/**
 * bench_pci_notify: an available buffer notification
 */
void bench_pci_notify(BenchPci *pci, unsigned queue);

#endif /* TESTS_BENCH_BENCH_PCI_H */
