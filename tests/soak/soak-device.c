/*
 * QEMU with its disks, as the soak's driver sees them
 *
 * QEMU does not tell which of its eventfds belongs to which queue.  It is found
 * by trying out: the IOThreads are held, each queue is notified over the qtest
 * socket a number of times that is its own, and the eventfd whose count has
 * risen by just that number is its notifier.  The main loop may be waiting for
 * an IOThread at that time, and then does not answer: the IOThreads are let go
 * and it is tried again.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "bench-process.h"
#include "soak-device.h"

#include <string.h>
#include <unistd.h>

/* In struct virtio_blk_config (5.2.4) */
#define CONFIG_CAPACITY     0

/* Of a second disk: where its registers are, behind those of the first */
#define WINDOW_BESIDE       0xe6000000u

/* Where a PC's firmware tells that a slot may be emptied */
#define PCIHP_EJECT         0xae08

/* Of the notifications of one queue; far from what happens by itself */
#define FIRST_COUNT         5

/* How far ticks are apart at least, and how long one may be */
#define MIN_TICK_US         2000
#define MAX_TICK_US         100000

#define ANSWER_MS           300
#define FIND_TRIES          100

/* QEMU */

static bool device_alive(BenchDevice *dev, GError **errp)
{
    return bench_qtest_alive(((SoakDevice *)dev)->qt, errp);
}

static bool find_iothreads(SoakDevice *dev, GError **errp)
{
    g_autoptr(JsonNode) ret =
        bench_qmp(dev->qt, "{ 'execute': 'query-iothreads' }", errp);
    JsonArray *list;

    if (!ret) {
        return false;
    }
    g_array_set_size(dev->parent.threads, 0);
    list = json_node_get_array(ret);
    for (unsigned i = 0; i < json_array_get_length(list); i++) {
        JsonObject *info = json_array_get_object_element(list, i);

        bench_device_add_thread(&dev->parent,
                                json_object_get_string_member(info, "id"),
                                json_object_get_int_member(info, "thread-id"));
    }
    return true;
}

static SoakDevice *make_device(unsigned slot, uint64_t window, unsigned queues,
                               BenchMemory *mem)
{
    static const BenchDeviceOps ops = { .alive = device_alive };
    SoakDevice *dev = g_new0(SoakDevice, 1);

    bench_device_init(&dev->parent, &ops, mem);
    dev->kind = bench_pci_blk;
    dev->kind.slot = slot;
    dev->kind.window = window;
    dev->wanted_queues = queues;
    dev->irq = bench_memory_alloc(mem, queues * SOAK_IRQ_STEP, SOAK_IRQ_STEP);
    return dev;
}

SoakDevice *soak_device_new(char **argv, unsigned queues,
                            const BenchMemory *ram, BenchMemory *mem,
                            GError **errp)
{
    SoakDevice *dev = make_device(SOAK_SLOT, bench_pci_blk.window, queues,
                                  mem);

    dev->qt = bench_qtest_start(argv, ram, errp);
    if (!dev->qt) {
        soak_device_free(dev);
        return NULL;
    }
    dev->parent.pid = dev->qt->pid;
    return dev;
}

SoakDevice *soak_device_beside(const SoakDevice *first, BenchMemory *mem)
{
    SoakDevice *dev = make_device(SOAK_SLOT_BESIDE, WINDOW_BESIDE,
                                  first->wanted_queues, mem);

    dev->beside = true;
    dev->qt = first->qt;
    dev->parent.pid = first->parent.pid;
    return dev;
}

bool soak_device_replace(SoakDevice *dev, char **argv, const BenchMemory *ram,
                         GError **errp)
{
    bool ok = dev->beside || bench_qtest_replace(dev->qt, argv, ram, errp);

    dev->parent.pid = dev->qt->pid;
    return ok;
}

void soak_device_free(SoakDevice *dev)
{
    if (dev) {
        if (!dev->beside) {
            bench_qtest_end(dev->qt);
        }
        bench_device_cleanup(&dev->parent);
        g_free(dev);
    }
}

/* The disk */

bool soak_device_probe(SoakDevice *dev, GError **errp)
{
    return bench_pci_init(&dev->pci, &dev->kind, dev->qt, errp);
}

static void forget_queues(SoakDevice *dev)
{
    soak_device_no_notifiers(dev);
    g_clear_pointer(&dev->parent.queues, g_free);
    dev->parent.num_queues = 0;
}

bool soak_device_reset(SoakDevice *dev, bool indirect, bool event_idx,
                       bool packed, bool in_order, GError **errp)
{
    static const uint64_t more = 1ull << SOAK_F_FLUSH |
                                 1ull << SOAK_F_DISCARD |
                                 1ull << SOAK_F_WRITE_ZEROES |
                                 1ull << SOAK_F_RING_RESET;
    BenchDevice *parent = &dev->parent;
    const BenchWish wish = {
        .queues = dev->wanted_queues,
        .indirect = indirect,
        .event_idx = event_idx,
    };
    uint64_t offered = bench_pci_reset(&dev->pci);

    forget_queues(dev);
    if (bench_qtest_failed(dev->qt, errp) ||
        !bench_device_negotiate(parent, offered, &wish, errp)) {
        return false;
    }
    parent->features |= offered & more;
    if (packed) {
        parent->features |= offered & (1ull << BENCH_F_RING_PACKED);
    }
    if (in_order) {
        parent->features |= offered & (1ull << BENCH_F_IN_ORDER);
    }
    if (!bench_pci_set_features(&dev->pci, parent->features, errp)) {
        return false;
    }
    parent->capacity = soak_device_capacity(dev);
    return bench_device_set_queues(parent, &wish,
                                   bench_pci_num_queues(&dev->pci),
                                   bench_pci_queue_size(&dev->pci, 0), errp) &&
           !bench_qtest_failed(dev->qt, errp);
}

bool soak_device_start(SoakDevice *dev, GError **errp)
{
    BenchDevice *parent = &dev->parent;

    memset(parent->mem->host + dev->irq, 0,
           parent->num_queues * SOAK_IRQ_STEP);
    bench_pci_enable_msix(&dev->pci, parent->num_queues, dev->irq,
                          SOAK_IRQ_STEP);
    for (unsigned i = 0; i < parent->num_queues; i++) {
        bench_pci_enable_queue(&dev->pci, i, &parent->queues[i]);
    }
    bench_pci_driver_ok(&dev->pci);
    return !bench_qtest_failed(dev->qt, errp);
}

bool soak_device_reset_queue(SoakDevice *dev, unsigned queue, GError **errp)
{
    if (!bench_device_has(&dev->parent, SOAK_F_RING_RESET)) {
        g_set_error(errp, BENCH_ERROR, 0, "the device does not offer "
                    "RING_RESET");
        return false;
    }
    if (!bench_pci_reset_queue(&dev->pci, queue)) {
        g_set_error(errp, BENCH_ERROR, 0, "queue %u stays in reset", queue);
        return false;
    }
    return !bench_qtest_failed(dev->qt, errp);
}

bool soak_device_enable_queue(SoakDevice *dev, unsigned queue, GError **errp)
{
    soak_device_take_irq(dev, queue);
    bench_pci_enable_queue(&dev->pci, queue, &dev->parent.queues[queue]);
    return !bench_qtest_failed(dev->qt, errp);
}

uint64_t soak_device_capacity(SoakDevice *dev)
{
    return bench_pci_config64(&dev->pci, CONFIG_CAPACITY);
}

bool soak_device_needs_reset(SoakDevice *dev)
{
    return bench_pci_status(&dev->pci) & SOAK_STATUS_NEEDS_RESET;
}

void soak_device_eject(SoakDevice *dev)
{
    bench_qtest_write(dev->qt, "outl", PCIHP_EJECT,
                      1u << (dev->pci.devfn >> 3));
}

bool soak_device_take_irq(SoakDevice *dev, unsigned queue)
{
    uint32_t *word = (uint32_t *)(dev->parent.mem->host + dev->irq +
                                  queue * SOAK_IRQ_STEP);

    return __atomic_exchange_n(word, 0, __ATOMIC_ACQ_REL);
}

void soak_device_tick(SoakDevice *dev)
{
    int64_t now = g_get_monotonic_time();
    int64_t elapsed = now - dev->tick_us;

    if (elapsed >= MIN_TICK_US &&
        bench_qtest_clock_step(dev->qt, MIN(elapsed, MAX_TICK_US) * 1000)) {
        dev->tick_us = now;
    }
}

/* Notifiers */

static bool each_iothread(SoakDevice *dev, bool (*fn)(pid_t, GError **),
                          GError **errp)
{
    const GArray *threads = dev->parent.threads;

    for (unsigned i = 0; i < threads->len; i++) {
        if (!fn(g_array_index(threads, BenchThread, i).tid, errp)) {
            return false;
        }
    }
    return true;
}

static unsigned count_of_queue(unsigned queue)
{
    return FIRST_COUNT + queue;
}

static bool notify_all(SoakDevice *dev, const uint64_t *addr)
{
    for (unsigned i = 0; i < dev->parent.num_queues; i++) {
        for (unsigned j = 0; j < count_of_queue(i); j++) {
            if (!bench_qtest_try_write(dev->qt, "writew", addr[i], i,
                                       ANSWER_MS)) {
                return false;
            }
        }
    }
    return true;
}

/* Number in QEMU of the one eventfd that has risen by @count; -1: not one */
static int find_risen(pid_t pid, const GArray *before, unsigned count)
{
    int found = -1;

    for (unsigned i = 0; i < before->len; i++) {
        const BenchEventfd *ev = &g_array_index(before, BenchEventfd, i);

        if (bench_eventfd_count(pid, ev->fd) == ev->count + count) {
            if (found >= 0) {
                return -1;
            }
            found = ev->fd;
        }
    }
    return found;
}

static bool take_notifiers(SoakDevice *dev, const GArray *before)
{
    pid_t pid = dev->parent.pid;

    for (unsigned i = 0; i < dev->parent.num_queues; i++) {
        BenchQueue *queue = &dev->parent.queues[i];
        int fd = find_risen(pid, before, count_of_queue(i));

        if (fd < 0) {
            return false;
        }
        queue->kick_fd = bench_dup_fd(pid, fd, NULL);
        if (queue->kick_fd < 0) {
            return false;
        }
    }
    return true;
}

/* Returns false, without @errp, if it is to be tried again */
static bool try_find(SoakDevice *dev, const uint64_t *addr, GError **errp)
{
    g_autoptr(GArray) before = NULL;
    bool found = false;

    if (!each_iothread(dev, bench_thread_freeze, errp)) {
        return false;
    }
    before = bench_eventfds(dev->parent.pid, errp);
    if (before) {
        found = notify_all(dev, addr) && take_notifiers(dev, before);
    }
    return each_iothread(dev, bench_thread_thaw, before ? errp : NULL) &&
           found;
}

bool soak_device_find_notifiers(SoakDevice *dev, GError **errp)
{
    unsigned n = dev->parent.num_queues;
    g_autofree uint64_t *addr = g_new(uint64_t, n);
    g_autoptr(GError) error = NULL;

    soak_device_no_notifiers(dev);
    if (!find_iothreads(dev, errp)) {
        return false;
    }
    for (unsigned i = 0; i < n; i++) {
        addr[i] = bench_pci_notify_address(&dev->pci, i);
    }
    for (unsigned i = 0; i < FIND_TRIES; i++) {
        if (try_find(dev, addr, &error)) {
            return true;
        }
        soak_device_no_notifiers(dev);
        if (error || bench_qtest_failed(dev->qt, &error)) {
            g_propagate_error(errp, g_steal_pointer(&error));
            return false;
        }
        g_usleep(1000 << MIN(i / 8, 5));
    }
    g_set_error(errp, BENCH_ERROR, 0, "cannot find the eventfds of the disk's "
                "queues: does an IOThread serve it?");
    return false;
}

void soak_device_no_notifiers(SoakDevice *dev)
{
    for (unsigned i = 0; i < dev->parent.num_queues; i++) {
        BenchQueue *queue = &dev->parent.queues[i];

        if (queue->kick_fd >= 0) {
            close(queue->kick_fd);
            queue->kick_fd = -1;
        }
    }
}
