/*
 * A virtio-blk device as the benchmark's driver sees it
 *
 * Knows what a driver needs of a device and its process, however the two are
 * reached: bench-qemu.c (virtio-pci, over the qtest socket),
 * bench-vhost-user.c (a vhost-user socket) and bench-standin.c (nobody else)
 * provide it.  Does not know rings or requests.
 *
 * Life of a BenchDevice:
 *
 *   bench_qemu_new(), bench_vhost_user_new()     features are negotiated
 *   or bench_standin_new()
 *     bench_device_start()                       queues get their memory
 *       bench_device_quiet()                     before a measurement
 *       bench_device_resume()                    after it
 *   bench_device_free()
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_BENCH_BENCH_DEVICE_H
#define TESTS_BENCH_BENCH_DEVICE_H

#include "bench-memory.h"

#define BENCH_ERROR (g_quark_from_static_string("bench"))

/* Feature bits (VIRTIO 1.3, 5.2.3 and 6) that the driver can use */
#define BENCH_F_RO              5
#define BENCH_F_FLUSH           9
#define BENCH_F_MQ              12
#define BENCH_F_INDIRECT_DESC   28
#define BENCH_F_EVENT_IDX       29
#define BENCH_F_VERSION_1       32
#define BENCH_F_RING_PACKED     34
#define BENCH_F_IN_ORDER        35

/* What the driver wants of the device */
typedef struct BenchWish {
    unsigned queues;            /* of each disk */
    unsigned queue_size;        /* largest that is wanted; 0: what there is */
    bool packed;
    bool in_order;
    bool indirect;
    bool event_idx;
    bool flush;                 /* where it is offered */
    unsigned disks;             /* all of one kind; 0: one */
    unsigned idle_disks;        /* beside them, which are only started */
} BenchWish;

/* One queue: sizes and addresses are the driver's, the rest the device's */
typedef struct BenchQueue {
    unsigned size;              /* entries, a power of two */
    uint64_t desc;              /* guest addresses of the three areas, */
    uint64_t avail;             /* packed: the driver's event structure, */
    uint64_t used;              /* packed: the device's event structure */
    int kick_fd;                /* eventfd: available buffer notifications */
    int call_fd;                /* eventfd: used buffer notifications */
} BenchQueue;

/* A thread of the device's process that serves requests */
typedef struct BenchThread {
    char *name;
    pid_t tid;
} BenchThread;

typedef struct BenchDevice BenchDevice;

/*
 * Makes one request on @queue, waits until it is done, and has asked for a
 * used buffer notification; kick_fd is open, call_fd need not be.
 */
typedef bool BenchProbeFunc(void *opaque, unsigned queue, GError **errp);

typedef struct BenchDeviceOps {
    /* See the functions below; all but start, alive and free may be NULL. */
    bool (*start)(BenchDevice *dev, GError **errp);
    bool (*quiet)(BenchDevice *dev, GError **errp);
    bool (*resume)(BenchDevice *dev, GError **errp);
    /* Of a device without a thread of its own: use all that is available */
    void (*serve)(BenchDevice *dev);
    /* How many requests it has served; NULL: it cannot tell */
    uint64_t (*served)(const BenchDevice *dev);
    /* Is the device's process still there?  Says so in @errp if not. */
    bool (*alive)(BenchDevice *dev, GError **errp);
    void (*free)(BenchDevice *dev);
} BenchDeviceOps;

/* The first member of each implementation's own structure */
struct BenchDevice {
    const BenchDeviceOps *ops;
    BenchMemory *mem;
    uint64_t features;          /* negotiated */
    bool read_only;
    uint64_t capacity;          /* of each disk, sectors of 512 bytes */
    unsigned num_disks;
    unsigned num_queues;        /* in use, of all disks, one after the other */
    BenchQueue *queues;         /* num_queues of them; their size is set */
    pid_t pid;                  /* of the device's process, 0 if not known */
    /* BenchThreads that serve requests; bench_device_quiet() may change them */
    GArray *threads;
    BenchProbeFunc *probe;      /* see bench_device_start() */
    void *probe_opaque;
};

/**
 * bench_qemu_new: start QEMU with virtio-blk-pci disks and reset them
 * @argv: NULL-terminated: the binary and its options for backend, IOThreads
 *        and the disks; machine, memory, and sockets are added here
 * @wish: what is to be negotiated
 * @mem: becomes the guest's RAM; outlives the device
 *
 * Returns: NULL with @errp set, and no process left, if QEMU does not start
 *          or a disk cannot do what is wished
 */
BenchDevice *bench_qemu_new(char **argv, const BenchWish *wish,
                            BenchMemory *mem, GError **errp);

/**
 * bench_vhost_user_new: connect to a vhost-user-blk back-end
 * @path: of its socket
 * @wish: what is to be negotiated
 * @hold: let its threads stand still while it is not quiet, so that one that
 *        polls does not take a CPU from others that are measured meanwhile
 * @mem: is shared with the back-end; outlives the device
 *
 * Returns: NULL with @errp set if it cannot do what is wished
 */
BenchDevice *bench_vhost_user_new(const char *path, const BenchWish *wish,
                                  bool hold, BenchMemory *mem, GError **errp);

/**
 * bench_standin_new: make a device that serves within the driver's thread
 * @wish: what is to be negotiated
 * @mem: outlives the device
 *
 * Returns: NULL with @errp set if it cannot do what is wished
 */
BenchDevice *bench_standin_new(const BenchWish *wish, BenchMemory *mem,
                               GError **errp);

/**
 * bench_device_start: hand the queues to the device, with all notifiers
 *
 * @probe: called with @opaque where a request is needed to find notifiers
 *
 * The caller has set size and addresses of each of @dev->queues, whose memory
 * is zeroed.  Afterwards kick_fd and call_fd are open and do not block; they
 * are the device's to close.
 *
 * Returns: false with @errp set if the device does not come up
 */
bool bench_device_start(BenchDevice *dev, BenchProbeFunc *probe, void *opaque,
                        GError **errp);

/**
 * bench_device_quiet: keep all but the serving threads from disturbing
 *
 * From here on to bench_device_resume() used buffer notifications reach
 * call_fd and nobody else, as with irqfd.
 */
bool bench_device_quiet(BenchDevice *dev, GError **errp);
bool bench_device_resume(BenchDevice *dev, GError **errp);

/**
 * bench_device_alive: false with @errp set if the process has ended
 */
bool bench_device_alive(BenchDevice *dev, GError **errp);

/**
 * bench_device_free: end what was started, and wait until it has ended
 * @dev: may be NULL
 */
void bench_device_free(BenchDevice *dev);

/**
 * bench_device_has: was feature @bit negotiated?
 */
static inline bool bench_device_has(const BenchDevice *dev, unsigned bit)
{
    return dev->features >> bit & 1;
}

/**
 * bench_device_disk_queues: how many queues each disk has
 */
static inline unsigned bench_device_disk_queues(const BenchDevice *dev)
{
    return dev->num_queues / dev->num_disks;
}

/* For the implementations: */

/**
 * bench_device_init: the part that all have in common
 */
void bench_device_init(BenchDevice *dev, const BenchDeviceOps *ops,
                       BenchMemory *mem);

/**
 * bench_device_cleanup: the pair of bench_device_init(); closes the notifiers
 */
void bench_device_cleanup(BenchDevice *dev);

/**
 * bench_device_negotiate: choose the features
 * @offered: the device's
 * @wish: what the driver wants
 *
 * Returns: false with @errp set if a wish cannot be fulfilled
 */
bool bench_device_negotiate(BenchDevice *dev, uint64_t offered,
                            const BenchWish *wish, GError **errp);

/**
 * bench_device_set_queues: make @dev->queues
 * @offered: number of queues that each disk has
 * @size: largest size of a queue
 *
 * Returns: false with @errp set if it has too few
 */
bool bench_device_set_queues(BenchDevice *dev, const BenchWish *wish,
                             unsigned offered, unsigned size, GError **errp);

/**
 * bench_device_add_thread: note that thread @tid serves requests
 */
void bench_device_add_thread(BenchDevice *dev, const char *name, pid_t tid);

#endif /* TESTS_BENCH_BENCH_DEVICE_H */
