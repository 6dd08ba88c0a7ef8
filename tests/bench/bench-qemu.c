/*
 * virtio-blk-pci devices in a QEMU of our own
 *
 * Knows how to bring them up and which of QEMU's eventfds are their
 * notifiers.  Which those are QEMU does not tell, so they are found by trying
 * out:
 *
 * - A queue's available buffer notification is sent over the qtest socket
 *   while the IOThreads stand still.  The eventfd whose count rises is it.
 * - One request is made while the main loop stands still.  The eventfd whose
 *   count rises is the one for used buffer notifications.
 *
 * While a measurement runs the main loop stands still, too: it would read the
 * latter eventfds, which KVM's irqfd does on a real host without it.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-idle.h"
#include "bench-process.h"

#include <unistd.h>

/* In struct virtio_blk_config (5.2.4) */
#define CONFIG_CAPACITY     0

/* How often the probing looks, a millisecond apart, and begins anew */
#define PROBE_LOOKS         100
#define PROBE_TRIES         20

typedef struct QemuDisk {
    BenchPciKind kind;
    BenchPci pci;
} QemuDisk;

typedef struct BenchQemu {
    BenchDevice parent;
    BenchQtest *qt;
    QemuDisk *disks;
    unsigned idle_disks;
    bool quiet;
} BenchQemu;

/* Holding threads */

/* Does to each IOThread what @fn does to a thread */
static bool each_iothread(BenchDevice *dev, bool (*fn)(pid_t, GError **),
                          GError **errp)
{
    for (unsigned i = 0; i < dev->threads->len; i++) {
        if (!fn(g_array_index(dev->threads, BenchThread, i).tid, errp)) {
            return false;
        }
    }
    return true;
}

static bool qemu_quiet(BenchDevice *dev, GError **errp)
{
    BenchQemu *q = (BenchQemu *)dev;

    q->quiet = bench_thread_freeze(dev->pid, errp);
    return q->quiet;
}

static bool qemu_resume(BenchDevice *dev, GError **errp)
{
    BenchQemu *q = (BenchQemu *)dev;

    if (!q->quiet) {
        return true;
    }
    q->quiet = false;
    return bench_thread_thaw(dev->pid, errp);
}

static bool qemu_alive(BenchDevice *dev, GError **errp)
{
    return bench_qtest_alive(((BenchQemu *)dev)->qt, errp);
}

static void qemu_free(BenchDevice *dev)
{
    BenchQemu *q = (BenchQemu *)dev;

    qemu_resume(dev, NULL);
    bench_qtest_end(q->qt);
    bench_device_cleanup(dev);
    g_free(q->disks);
    g_free(q);
}

/* @queue: of all disks' queues; becomes its number in the disk */
static BenchPci *disk_of_queue(BenchQemu *q, unsigned *queue)
{
    unsigned n = bench_device_disk_queues(&q->parent);
    BenchPci *pci = &q->disks[*queue / n].pci;

    *queue %= n;
    return pci;
}

/* Probing */

/*
 * The eventfd whose count rises beyond what is in @before.  Returns its number
 * in QEMU, -1 if there is not exactly one.
 */
static int find_risen(pid_t pid, const GArray *before)
{
    int found = -1;

    for (unsigned i = 0; i < before->len; i++) {
        const BenchEventfd *ev = &g_array_index(before, BenchEventfd, i);

        if (bench_eventfd_count(pid, ev->fd) > ev->count) {
            if (found >= 0) {
                return -1;
            }
            found = ev->fd;
        }
    }
    return found;
}

/*
 * Waits until just one eventfd has risen: what the running threads notify each
 * other of is gone again at the next look.
 */
static int wait_risen(pid_t pid, const GArray *before)
{
    for (unsigned i = 0; i < PROBE_LOOKS; i++) {
        int found = find_risen(pid, before);

        if (found >= 0) {
            return found;
        }
        g_usleep(1000);
    }
    return -1;
}

/* Returns the eventfd's number in QEMU; -1, without @errp, if none is found */
static int try_kick(BenchQemu *q, unsigned queue, GError **errp)
{
    BenchDevice *dev = &q->parent;
    g_autoptr(GArray) before = NULL;
    BenchPci *pci = disk_of_queue(q, &queue);
    int fd = -1;

    if (!each_iothread(dev, bench_thread_freeze, errp)) {
        return -1;
    }
    before = bench_eventfds(dev->pid, errp);
    if (before) {
        bench_pci_notify(pci, queue);
        fd = wait_risen(dev->pid, before);
    }
    if (!each_iothread(dev, bench_thread_thaw, before ? errp : NULL)) {
        return -1;
    }
    return fd;
}

static int try_call(BenchQemu *q, unsigned queue, GError **errp)
{
    BenchDevice *dev = &q->parent;
    g_autoptr(GArray) before = NULL;
    bool done = false;
    int fd = -1;

    if (!qemu_quiet(dev, errp)) {
        return -1;
    }
    before = bench_eventfds(dev->pid, errp);
    if (before && dev->probe(dev->probe_opaque, queue, errp)) {
        done = true;
        fd = wait_risen(dev->pid, before);
    }
    return qemu_resume(dev, done ? errp : NULL) ? fd : -1;
}

/* Returns our duplicate of the eventfd */
static int probe(BenchQemu *q, unsigned queue, const char *what,
                 int (*try)(BenchQemu *, unsigned, GError **), GError **errp)
{
    g_autoptr(GError) error = NULL;
    int fd = -1;

    for (unsigned i = 0; fd < 0 && !error && i < PROBE_TRIES; i++) {
        fd = try(q, queue, &error);
    }
    if (error) {
        g_propagate_error(errp, g_steal_pointer(&error));
        return -1;
    }
    if (fd < 0) {
        g_set_error(errp, BENCH_ERROR, 0, "cannot find the eventfd for %s of "
                    "queue %u: is ioeventfd=on, and does an IOThread serve its "
                    "disk?", what, queue);
        return -1;
    }
    return bench_dup_fd(q->parent.pid, fd, errp);
}

static bool probe_queue(BenchQemu *q, unsigned i, GError **errp)
{
    BenchQueue *queue = &q->parent.queues[i];

    queue->kick_fd = probe(q, i, "available buffer notifications", try_kick,
                           errp);
    if (queue->kick_fd < 0 || bench_qtest_failed(q->qt, errp)) {
        return false;
    }
    queue->call_fd = probe(q, i, "used buffer notifications", try_call, errp);
    return queue->call_fd >= 0;
}

static bool start_disk(BenchQemu *q, unsigned disk, GError **errp)
{
    BenchDevice *dev = &q->parent;
    BenchPci *pci = &q->disks[disk].pci;
    unsigned n = bench_device_disk_queues(dev);

    bench_pci_enable_msix(pci, n, bench_memory_alloc(dev->mem, 64, 64), 0);
    for (unsigned i = 0; i < n; i++) {
        bench_pci_enable_queue(pci, i, &dev->queues[disk * n + i]);
    }
    bench_pci_driver_ok(pci);
    if (bench_qtest_failed(q->qt, errp)) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        if (!probe_queue(q, disk * n + i, errp)) {
            g_prefix_error(errp, "disk %u: ", disk);
            return false;
        }
    }
    return true;
}

static bool qemu_start(BenchDevice *dev, GError **errp)
{
    BenchQemu *q = (BenchQemu *)dev;

    for (unsigned i = 0; i < dev->num_disks; i++) {
        if (!start_disk(q, i, errp)) {
            return false;
        }
    }
    /* Last, so that there are few eventfds to try out. */
    return bench_idle_start(q->qt, dev->num_disks - 1, q->idle_disks,
                            dev->features, dev->mem, errp);
}

/* Starting QEMU */

static bool find_iothreads(BenchQemu *q, GError **errp)
{
    g_autoptr(JsonNode) ret =
        bench_qmp(q->qt, "{ 'execute': 'query-iothreads' }", errp);
    JsonArray *list;

    if (!ret) {
        return false;
    }
    list = json_node_get_array(ret);
    for (unsigned i = 0; i < json_array_get_length(list); i++) {
        JsonObject *info = json_array_get_object_element(list, i);

        bench_device_add_thread(&q->parent,
                                json_object_get_string_member(info, "id"),
                                json_object_get_int_member(info, "thread-id"));
    }
    if (!q->parent.threads->len) {
        g_set_error(errp, BENCH_ERROR, 0, "QEMU has no IOThread: give it one "
                    "with -object iothread and name it in -device");
        return false;
    }
    return true;
}

/* The first one is the only one in its slots, the others have places. */
static bool find_disk(BenchQemu *q, unsigned i, const BenchWish *wish,
                      GError **errp)
{
    BenchDevice *dev = &q->parent;
    QemuDisk *disk = &q->disks[i];
    uint64_t offered;

    disk->kind = i ? bench_pci_blk_at(i - 1) : bench_pci_blk;
    if (!bench_pci_init(&disk->pci, &disk->kind, q->qt, errp)) {
        return false;
    }
    offered = bench_pci_reset(&disk->pci);
    return !bench_qtest_failed(q->qt, errp) &&
           bench_device_negotiate(dev, offered, wish, errp) &&
           bench_pci_set_features(&disk->pci, dev->features, errp);
}

static bool set_up_disks(BenchQemu *q, const BenchWish *wish, GError **errp)
{
    BenchDevice *dev = &q->parent;
    unsigned num_disks = MAX(wish->disks, 1);
    unsigned queues = UINT_MAX, size = UINT_MAX;

    q->disks = g_new0(QemuDisk, num_disks);
    dev->capacity = UINT64_MAX;
    for (unsigned i = 0; i < num_disks; i++) {
        BenchPci *pci = &q->disks[i].pci;

        if (!find_disk(q, i, wish, errp)) {
            g_prefix_error(errp, "disk %u: ", i);
            return false;
        }
        dev->capacity = MIN(dev->capacity,
                            bench_pci_config64(pci, CONFIG_CAPACITY));
        queues = MIN(queues, bench_pci_num_queues(pci));
        size = MIN(size, bench_pci_queue_size(pci, 0));
    }
    return bench_device_set_queues(dev, wish, queues, size, errp) &&
           !bench_qtest_failed(q->qt, errp);
}

BenchDevice *bench_qemu_new(char **argv, const BenchWish *wish,
                            BenchMemory *mem, GError **errp)
{
    static const BenchDeviceOps ops = {
        .start = qemu_start,
        .quiet = qemu_quiet,
        .resume = qemu_resume,
        .alive = qemu_alive,
        .free = qemu_free,
    };
    BenchQemu *q = g_new0(BenchQemu, 1);

    q->idle_disks = wish->idle_disks;
    bench_device_init(&q->parent, &ops, mem);
    q->qt = bench_qtest_start(argv, mem, errp);
    if (!q->qt) {
        qemu_free(&q->parent);
        return NULL;
    }
    q->parent.pid = q->qt->pid;
    if (!find_iothreads(q, errp) || !set_up_disks(q, wish, errp)) {
        qemu_free(&q->parent);
        return NULL;
    }
    return &q->parent;
}
