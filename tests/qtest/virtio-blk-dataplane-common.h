/*
 * A small virtio-blk driver for the qtests of the data plane
 *
 * Knows the transport through libqos, and builds rings, chains and requests by
 * itself, so that a test can break each rule of a driver on purpose.  Unless a
 * test says otherwise it is a strict driver: it looks at the used ring only
 * after an interrupt and kicks only when the device asks for it, so that a lost
 * notification shows as a hang.  It knows nothing of the plane but the
 * properties "x-data-plane" and "x-data-plane-info".
 *
 * It accepts whatever ring the device offers: with "packed=on" a packed one,
 * with "in_order=on" in-order use.  virtio-blk-dataplane-ring.c drives them.
 *
 * With DP_ACCEL=kvm in the environment, PCs have a vCPU in KVM that takes the
 * interrupts and kicks: see virtio-blk-dataplane-kvm.h.
 *
 * Every wait has a hang guard of DP_HANG_SECONDS; no wait is a measurement.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_BLK_DATAPLANE_COMMON_H
#define TESTS_QTEST_VIRTIO_BLK_DATAPLANE_COMMON_H

#include "libqtest.h"
#include "libqos/generic-pcihost.h"
#include "libqos/libqos-malloc.h"
#include "libqos/pci.h"
#include "libqos/virtio.h"
#include "libqos/virtio-pci.h"
#include "standard-headers/linux/virtio_blk.h"
#include "standard-headers/linux/virtio_config.h"
#include "standard-headers/linux/virtio_pci.h"
#include "standard-headers/linux/virtio_ring.h"

#define DP_HANG_SECONDS 60
#define DP_SECTOR 512
#define DP_SLOT 4
#define DP_NO_STATUS 0xff
#define DP_IMAGE_SIZE (8 * 1024 * 1024)     /* of the disk that tests get */
#define DP_CAPACITY (DP_IMAGE_SIZE / DP_SECTOR)

/* Feature sets to start a disk with; bits that are not offered are left out. */
#define DP_F_PLAIN (~((1ull << VIRTIO_RING_F_INDIRECT_DESC) | \
                      (1ull << VIRTIO_RING_F_EVENT_IDX)))
#define DP_F_INDIRECT (~(1ull << VIRTIO_RING_F_EVENT_IDX))
#define DP_F_EVENT (~(1ull << VIRTIO_RING_F_INDIRECT_DESC))
#define DP_F_SPLIT (~(1ull << VIRTIO_F_RING_PACKED))
#define DP_F_ALL (~0ull)

/* How a disk is asked to be served, and what kind of ring it offers. */
typedef struct DpMode {
    const char *name;
    const char *props;      /* device properties, starting with a comma */
    const char *json;       /* the same as members of a JSON object */
    bool plane;             /* the data plane must be what serves it */
    bool packed;
    bool in_order;
} DpMode;

extern const DpMode dp_mode_iothread;
extern const DpMode dp_mode_private;
extern const DpMode dp_mode_off;
extern const DpMode dp_mode_main;
extern const DpMode dp_mode_packed;
extern const DpMode dp_mode_in_order;
extern const DpMode dp_mode_packed_in_order;
extern const DpMode dp_mode_off_packed;

/* The modes above, ended by NULL. */
extern const DpMode *const dp_modes[];

typedef struct DpVm {
    QTestState *qts;
    const DpMode *mode;     /* of the disk "d0"; NULL after dp_vm_start() */
    QGuestAllocator alloc;
    QPCIBus *bus;           /* NULL if the machine has no PCI */
    QGenericPCIHost host;   /* what bus is part of, where it is no PC */
    bool no_proxy;          /* disks are virtio-blk-device: virtio-mmio */
    bool kvm;               /* see virtio-blk-dataplane-kvm.h */
    unsigned next_vector;   /* kvm: of the vCPU */
    uint8_t *ram;           /* see virtio-blk-dataplane-ram.h; else NULL */
    uint64_t ram_base;
    uint64_t ram_size;      /* bytes, at ram */
} DpVm;

typedef struct DpSeg {
    uint64_t addr;
    uint32_t len;
    uint16_t flags;         /* VRING_DESC_F_*; NEXT is set by dp_chain() */
} DpSeg;

typedef enum DpFraming {
    DP_DIRECT,              /* header, data, status: a descriptor each */
    DP_MERGED,              /* as few descriptors as directions allow */
    DP_BYTES,               /* header and data cut at odd places */
    DP_INDIRECT,            /* all in a table */
    DP_INDIRECT_WRITE,      /* same, and WRITE set on the table */
    DP_HALF_INDIRECT,       /* header direct, the rest in a table */
    DP_SHUFFLED,            /* table with holes, chained backwards */
    DP_FRAMING__MAX,
} DpFraming;

extern const char *const dp_framing_name[DP_FRAMING__MAX];

/* A request; its guest memory is its own until dp_req_free(). */
typedef struct DpReq {
    uint32_t type;
    uint32_t reserved;
    uint64_t sector;
    uint32_t len;           /* bytes of data */
    bool to_guest;          /* data is device-writable */
    DpFraming framing;
    unsigned pieces;        /* of data, or 0; DP_INDIRECT, the table is ours */
    uint64_t page;          /* header and status, among canaries */
    uint64_t data;          /* may be set, as the next two, if not in pieces */
    uint64_t header_at;     /* DP_DIRECT: instead of in @page, or 0 */
    uint64_t status_at;
    uint64_t status_addr;
    uint64_t table;
    uint16_t head;          /* of a packed ring: the buffer ID */
    bool in_flight;
    bool done;
    uint32_t used_len;
    uint8_t status;
} DpReq;

/*
 * A disk as seen through one of its queues: what stands in the first part is
 * the same in all of them.  dp_disk_probe() gives queue 0, and calls that are
 * not about a queue are to be made on that one.
 */
typedef struct DpDisk {
    DpVm *vm;
    char *id;
    QVirtioPCIDevice *pci;  /* NULL after dp_disk_wrap() */
    QVirtioDevice *vdev;
    uint64_t features;
    bool no_msix;
    bool packed;            /* negotiated, as these two */
    bool in_order;
    GPtrArray *queues;      /* DpDisk of each queue that is used; 0 is first */

    unsigned index;         /* of the queue */
    bool unused;            /* not to be set up from the next start on */
    QVirtQueuePCI *vqpci;
    QVirtQueue *vq;
    unsigned num;           /* queue size */
    unsigned want_num;      /* size to set up; 0: the device's, or 256 of it */
    uint64_t ring;          /* memory of the ring */
    uint64_t ring_size;
    /*
     * Split: as the ring counts them.  Packed: positions that count to twice
     * the size, so that the wrap counter is 1 in the lower half.
     */
    uint16_t avail_idx;     /* next entry to fill */
    uint16_t exposed_idx;   /* what the device was shown */
    uint16_t used_idx;      /* next element to take */
    unsigned vector;        /* kvm: of the vCPU, 0: none yet */
    uint32_t irqs_seen;
    unsigned config_vector; /* kvm: likewise */
    uint32_t config_irqs_seen;
    uint64_t irqs;
    uint64_t kicks;
    uint64_t reads;         /* requests that were taken from the used ring */
    uint64_t writes;
    uint64_t others;
    GArray *free_desc;      /* free descriptors; packed: buffer IDs */
    DpReq **by_head;
    unsigned pending;

    GArray *order;          /* in-order: heads as they were made available */
    unsigned batch;         /* in-order: left of what one used entry returns */
    uint32_t batch_len;
    GArray *hidden;         /* packed: flags that dp_expose() has to write */
    uint16_t *entries;      /* packed: how many a buffer ID takes */
    unsigned free_entries;
} DpDisk;

/* What "x-data-plane-info" says, with the counters of one queue. */
typedef struct DpInfo {
    char state[16];
    char reason[160];       /* empty if there is none */
    char iothread[32];      /* empty if there is none */
    char moving_to[32];     /* likewise */
    bool serving;
    unsigned num_queues;
    int64_t starts;
    int64_t reads;
    int64_t writes;
    int64_t flushes;
    int64_t discards;
    int64_t write_zeroes;
    int64_t other;
    int64_t errors;
    int64_t batches;
    int64_t kicks;
    int64_t polled;
    int64_t sent;
    int64_t suppressed;
    int64_t merged;
    int64_t in_flight;
    int64_t completed;
} DpInfo;

/* A verifying load: each slot writes a version, reads it back, and so on. */
typedef struct DpLoad DpLoad;

/**
 * dp_tmp: path of @name in the private directory of this process
 *
 * The directory and all that is in it goes away with dp_tmp_cleanup(), or when
 * a test aborts.
 *
 * Returns: a string to be freed by the caller
 */
char *dp_tmp(const char *name);
void dp_tmp_cleanup(void);

/**
 * dp_image: create a raw image of @size zero bytes in the private directory
 */
char *dp_image(const char *name, uint64_t size);

/**
 * dp_can_open_direct, dp_can_io_uring: does the host let us have that?
 */
bool dp_can_open_direct(void);
bool dp_can_io_uring(void);

/**
 * dp_nbd_start: run an NBD server at "nbd.sock", export "disk", on "disk.img"
 *
 * The last two are in the private directory.  The server ends with this
 * process, if not before.
 *
 * Pair: dp_nbd_kill()
 */
GPid dp_nbd_start(void);
void dp_nbd_kill(GPid pid);

/**
 * dp_nbd_can: is it known which program the server is?
 */
bool dp_nbd_can(void);

/**
 * dp_vm_start: run QEMU with two IOThreads, io0 and io1, and these arguments
 *
 * The machine is "pc" or, where QTEST_QEMU_BINARY is for aarch64, "virt".  With
 * arguments that begin with DP_SHARED_RAM the test works in its RAM as a vCPU
 * does (virtio-blk-dataplane-ram.h); it must not migrate then.
 * Pair: dp_vm_quit()
 */
#define DP_SHARED_RAM "-machine memory-backend=ram "
DpVm *dp_vm_start(const char *fmt, ...) G_GNUC_PRINTF(1, 2);
void dp_vm_quit(DpVm *vm);

/**
 * dp_vm_end: the same, but leave the private directory, to look at an image
 */
void dp_vm_end(DpVm *vm);

/**
 * dp_iothread_add / dp_iothread_del: object-add and object-del of one
 */
void dp_iothread_add(DpVm *vm, const char *id);
void dp_iothread_del(DpVm *vm, const char *id);

/**
 * dp_iothread_tid: the thread of one of query-iothreads
 *
 * dp_wait_thread_gone: wait until a thread of QEMU has ended
 */
pid_t dp_iothread_tid(DpVm *vm, const char *id);
void dp_wait_thread_gone(DpVm *vm, pid_t tid);

/**
 * dp_freeze: make the thread of an IOThread stand still
 * @iothread: one of query-iothreads
 *
 * Returns: its number, or 0, with the test skipped, if the host does not allow
 *          this
 *
 * Pair: dp_thaw()
 */
pid_t dp_freeze(DpVm *vm, const char *iothread);
void dp_thaw(pid_t tid);

/**
 * dp_vm_status_kib: what /proc says of QEMU's memory
 * @field: such as "VmLck:"
 */
unsigned long dp_vm_status_kib(DpVm *vm, const char *field);

/**
 * dp_vm_null: a VM with one disk "d0" on a null-co node "n0" of 64 MiB
 * @opts: options of the node, starting with a comma, or ""
 * @props: more properties of the device, starting with a comma, or ""
 */
DpVm *dp_vm_null(const DpMode *mode, const char *opts, const char *props);

/**
 * dp_vm_file: a VM with one disk "d0" on a raw node "n0" on a file "disk.img",
 *             by io_uring if the host allows it
 *
 * It cannot migrate, as those of dp_vm_null() and dp_vm_parking() cannot: see
 * DP_SHARED_RAM.
 */
DpVm *dp_vm_file_aio(const DpMode *mode, uint64_t size, const char *aio,
                     const char *props);
DpVm *dp_vm_file(const DpMode *mode, uint64_t size, const char *props);

/**
 * dp_vm_parking: the same, but the first write fails, and stops the machine
 */
DpVm *dp_vm_parking(const DpMode *mode, const char *props);

/**
 * dp_vm_slow_metadata: a VM with one disk "d0" on a raw node "n0" on a qcow2
 *                      node "q0", whose writes wait for qtest's clock
 * @size: of the image, bytes
 * @json: more properties of the device, as dp_plug_disk() takes them
 *
 * The clock stands still, so a resize of q0 keeps n0 in a drained section for
 * as long as the test likes.  dp_vm_lift_limit() ends the waiting for good.
 * Needs have_qemu_img().
 */
DpVm *dp_vm_slow_metadata(const DpMode *mode, uint64_t size, const char *json);
void dp_vm_lift_limit(DpVm *vm);

/**
 * dp_plug_disk: add a disk "d0" on @node while the VM runs
 * @json: more members of device_add's arguments, starting with a comma, or ""
 */
void dp_plug_disk(DpVm *vm, const char *node, const DpMode *mode,
                  const char *json);

/**
 * dp_open_port: let what is behind a root port be reached
 * @devfn: of the port
 * @bus: number that the bus behind it gets
 */
void dp_open_port(DpVm *vm, int devfn, unsigned bus);

/**
 * dp_disk_probe: find the device in PCI slot @slot
 *
 * Pair: dp_disk_free(), which resets nothing
 */
DpDisk *dp_disk_probe(DpVm *vm, const char *id, int slot);
void dp_disk_free(DpDisk *disk);

/**
 * dp_disk_queue: @disk as seen through its queue @index
 *
 * The queue is set up from the next start on.  It goes away with the disk.
 */
DpDisk *dp_disk_queue(DpDisk *disk, unsigned index);

/**
 * dp_disk_wrap: a device on another transport than the PCI one of libqos
 * @vdev: what reaches its registers; get_queue_size() also chooses a size
 *
 * It has no MSI-X: whether there is an interrupt is asked of @vdev's bus.
 */
DpDisk *dp_disk_wrap(DpVm *vm, const char *id, QVirtioDevice *vdev);

/**
 * dp_disk_init: reset and initialise up to, but without, DRIVER_OK
 * @features: bits to accept of those offered
 *
 * Requests that were in flight are forgotten.
 */
void dp_disk_init(DpDisk *disk, uint64_t features);

/**
 * dp_disk_start: dp_disk_init() and DRIVER_OK
 */
void dp_disk_start(DpDisk *disk, uint64_t features);

/**
 * dp_disk_new: dp_disk_probe() in DP_SLOT as "d0" and dp_disk_start()
 */
DpDisk *dp_disk_new(DpVm *vm, uint64_t features);

/**
 * dp_disk_reset: write status 0, wait for it, forget requests in flight
 */
void dp_disk_reset(DpDisk *disk);

/**
 * dp_queue_reset: reset this queue alone, and check that it is over
 *
 * Requests that were in flight are forgotten.
 */
void dp_queue_reset(DpDisk *queue);

/**
 * dp_queue_restart: set the queue up again, after it alone was reset
 */
void dp_queue_restart(DpDisk *disk);

/**
 * dp_disk_new_ring: use other memory for the ring from the next start on
 */
void dp_disk_new_ring(DpDisk *disk);

/**
 * dp_disk_place_ring: use these addresses instead, from the next start on
 *
 * Must be called between dp_disk_init() and DRIVER_OK, before any request.
 */
void dp_disk_place_ring(DpDisk *disk, uint64_t desc, uint64_t avail,
                        uint64_t used);

uint8_t dp_status(DpDisk *disk);

/**
 * dp_assert_broken: wait for DEVICE_NEEDS_RESET and the interrupt that follows
 */
void dp_assert_broken(DpDisk *disk);

/**
 * dp_assert_works: write, read back and verify, with the framing at hand
 */
void dp_assert_works(DpDisk *disk);

DpReq *dp_req(DpDisk *disk, uint32_t type, uint64_t sector, uint32_t len);
void dp_req_free(DpDisk *disk, DpReq *req);

/**
 * dp_req_drop: free @n requests, also those in flight: the device has gone
 */
void dp_req_drop(DpDisk *disk, DpReq **req, unsigned n);

/**
 * dp_req_fill / dp_req_matches: set and check data by a pattern of @seed
 */
void dp_req_fill(DpDisk *disk, DpReq *req, uint32_t seed);
bool dp_req_matches(DpDisk *disk, DpReq *req, uint32_t seed);
bool dp_req_is_byte(DpDisk *disk, DpReq *req, uint8_t byte);

/**
 * dp_submit: make a request available, not yet exposed nor kicked
 */
void dp_submit(DpDisk *disk, DpReq *req);

/**
 * dp_submit_chain: the same with a chain that the caller built
 * @seg: @n descriptors; what stands in header and status is written here
 */
void dp_submit_chain(DpDisk *disk, DpReq *req, const DpSeg *seg, unsigned n);

/* Rings: virtio-blk-dataplane-ring.c */

/**
 * dp_ring_new: what a queue's driver needs, for life
 *
 * Pair: dp_ring_free()
 */
void dp_ring_new(DpDisk *disk);
void dp_ring_free(DpDisk *disk);

/**
 * dp_ring_init: size and format are known now; begin
 *
 * dp_ring_forget: begin anew; requests that were in flight are forgotten
 */
void dp_ring_init(DpDisk *disk);
void dp_ring_forget(DpDisk *disk);

/**
 * dp_desc_write: write entry @i of the descriptor table at @table
 * @next: of a packed ring: the buffer ID
 */
void dp_desc_write(DpDisk *disk, uint64_t table, unsigned i, uint64_t addr,
                   uint32_t len, uint16_t flags, uint16_t next);

/**
 * dp_desc_fill: the same, in the memory of the test
 */
void dp_desc_fill(DpDisk *disk, struct vring_desc *desc, uint64_t addr,
                  uint32_t len, uint16_t flags, uint16_t next);

/**
 * dp_chain: put a chain into free descriptors of the ring
 *
 * Of a packed ring these are the next ones, so dp_avail() must follow.
 *
 * Returns: its head, or buffer ID; nothing is exposed yet
 */
uint16_t dp_chain(DpDisk *disk, const DpSeg *seg, unsigned n);

/**
 * dp_avail: make the chain the next available one; dp_expose() shows it
 */
void dp_avail(DpDisk *disk, uint16_t head);
void dp_expose(DpDisk *disk);

/**
 * dp_kick: notify the device if it asks for it; dp_kick_always: in any case
 */
void dp_kick(DpDisk *disk);
void dp_kick_always(DpDisk *disk);

/**
 * dp_asks_for_kick: does the device ask to be notified of the next buffer?
 */
bool dp_asks_for_kick(DpDisk *disk);

/**
 * dp_count_used: how many used buffers does the ring show?
 */
unsigned dp_count_used(DpDisk *disk);

/**
 * dp_take_used: take a used buffer from the ring, if there is one
 * @len: of a buffer that a batch skips (2.7.9, 2.8.8): UINT32_MAX
 *
 * Returns: false if there is none
 */
bool dp_take_used(DpDisk *disk, uint16_t *head, uint32_t *len);

/**
 * dp_set_irqs: without EVENT_IDX: ask for interrupts, or for none
 */
void dp_set_irqs(DpDisk *disk, bool on);

/**
 * dp_set_event: with EVENT_IDX: ask for an interrupt when a buffer is used
 * @n: which one, the next being 0
 * @entries: of a packed ring: how many each of the buffers takes
 */
void dp_set_event(DpDisk *disk, int n, unsigned entries);

/* Waiting */

/**
 * dp_irq: take the queue's interrupt, if there is one
 */
bool dp_irq(DpDisk *disk);
bool dp_config_irq(DpDisk *disk);
void dp_wait_config_irq(DpDisk *disk);

/**
 * dp_reap: take what the used ring shows, without looking for an interrupt
 *
 * Returns: number of requests taken
 */
unsigned dp_reap(DpDisk *disk);

/**
 * dp_wait: wait for a request, driven by interrupts; dp_wait_all: for all
 */
void dp_wait(DpDisk *disk, DpReq *req);
void dp_wait_all(DpDisk *disk);

/**
 * dp_poll: wait for a request by looking at the used ring
 */
void dp_poll(DpDisk *disk, DpReq *req);

/**
 * dp_poll_all: same for all requests, and leave the wish for interrupts alone
 */
void dp_poll_all(DpDisk *disk);

/**
 * dp_run: submit, kick and wait; returns the status
 */
uint8_t dp_run(DpDisk *disk, DpReq *req);

/**
 * dp_rw: run one read or write of @len bytes with pattern @seed
 *
 * A read that succeeds must match the pattern.
 */
uint8_t dp_rw(DpDisk *disk, uint32_t type, uint64_t sector, uint32_t len,
              uint32_t seed);

/**
 * dp_info: ask for the plane's state and the counters of queue 0
 *
 * dp_queue_info: same with the counters of this queue
 */
void dp_info(DpVm *vm, const char *id, DpInfo *info);
void dp_queue_info(DpDisk *queue, DpInfo *info);
void dp_wait_state(DpVm *vm, const char *id, const char *state);
void dp_wait_in_flight(DpVm *vm, const char *id, int64_t n);
void dp_queue_wait_in_flight(DpDisk *queue, int64_t n);

/**
 * dp_assert_mode: is the disk "d0", which has been started, served as asked?
 */
void dp_assert_mode(DpVm *vm, const DpMode *mode);

/**
 * dp_assert_as_asked: the same in the mode that the VM was started for
 */
void dp_assert_as_asked(DpDisk *disk);

/**
 * dp_hold: keep all requests of disk @id in flight until dp_release() or a
 *          drain; dp_release: let them go
 *
 * This is a throttle with qtest's clock, which stands still, or for so little
 * that no test sees the next request pass.  It lets a first one pass, so
 * dp_hold() sends it.
 */
void dp_hold(DpDisk *disk);
void dp_release(DpDisk *disk);

/**
 * dp_throttle: limit a disk as a member of @group; 0: no limit
 */
void dp_throttle(DpDisk *disk, const char *group, int iops);

/**
 * dp_load_new: a load of @depth slots; nothing is sent before dp_load_run()
 * @first: its first sector
 */
DpLoad *dp_load_new(DpDisk *disk, unsigned depth, uint64_t first);

/**
 * dp_load_new_queues: a load of @depth slots on each of the disk's queues
 *
 * What was written through a queue is read through the one that follows.
 */
DpLoad *dp_load_new_queues(DpDisk *disk, unsigned depth, uint64_t first);

/**
 * dp_load_run: go on until @ops more requests were done and verified
 */
void dp_load_run(DpLoad *load, unsigned ops);

/**
 * dp_load_send: make each slot send a request and do not wait
 */
void dp_load_send(DpLoad *load);

/**
 * dp_load_reset: the device was reset; what was in flight is void
 */
void dp_load_reset(DpLoad *load);

/**
 * dp_load_forget_tables: go on without indirect tables
 */
void dp_load_forget_tables(DpLoad *load);

/**
 * dp_load_abandon: free a load of which nothing is in flight, unverified
 */
void dp_load_abandon(DpLoad *load);

/**
 * dp_load_finish: wait for what is in flight, verify all slots, free
 */
void dp_load_finish(DpLoad *load);

/**
 * dp_qmp: run a command while the load goes on, whose answer is returned
 * @load: may be NULL
 */
QDict *dp_qmp(DpVm *vm, DpLoad *load, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);
void dp_qmp_ok(DpVm *vm, DpLoad *load, const char *fmt, ...)
    G_GNUC_PRINTF(3, 4);

/**
 * dp_qmp_error: same, for a command that must fail with @text in its message
 */
void dp_qmp_error(DpVm *vm, DpLoad *load, const char *text,
                  const char *fmt, ...) G_GNUC_PRINTF(4, 5);

/**
 * dp_stop / dp_cont: stop the machine, and let it go on
 */
void dp_stop(DpVm *vm);
void dp_cont(DpVm *vm);

/**
 * dp_resize: set the size of node "n0", while the load goes on
 * @load: may be NULL
 */
void dp_resize(DpVm *vm, DpLoad *load, int64_t size);

/**
 * dp_unplug: unplug "d0" from its slot; dp_eject: the guest's part of it
 */
void dp_unplug(DpVm *vm);
void dp_eject(DpVm *vm);

/**
 * dp_deadline / dp_check_deadline: the hang guard of a loop
 */
gint64 dp_deadline(void);
void dp_check_deadline(gint64 deadline, const char *what);

/* Which formats a test is for */
typedef enum DpRings {
    DP_ANY_RING,
    DP_SPLIT_RING,
    DP_PACKED_RING,
} DpRings;

bool dp_has_ring(const DpMode *mode, DpRings rings);

/*
 * A row of a test program's table.  Either the test is given a disk "d0", which
 * was started and which must be served as asked when the test is over, or it
 * has @own_vm.  What is left out of the row has the default.
 */
typedef struct DpTest {
    const char *name;
    void (*fn)(DpDisk *disk);
    DpRings rings;
    void (*own_vm)(const DpMode *mode);     /* instead of @fn */
    /* The disk's VM; default: dp_vm_file() of DP_IMAGE_SIZE */
    DpVm *(*vm)(const DpMode *mode);
    const char *null;       /* dp_vm_null() with these options */
    const char *props;      /* more properties, starting with a comma */
    uint64_t features;      /* to start it with; default: DP_F_ALL */
    bool idle;              /* it was found, but not started */
    bool ends_unserved;     /* the test leaves it reset, broken or unplugged */
} DpTest;

/**
 * dp_add_row: register a test in one mode, below the path of @group
 *
 * It is skipped if KVM is wanted in vain.
 */
void dp_add_row(const char *group, const DpTest *test, const DpMode *mode);

/**
 * dp_add_table: dp_add_row() for each row, in each mode that has the row's
 *               kind of ring, or in those with the plane
 */
void dp_add_table(const char *group, const DpTest *tests, unsigned n,
                  bool plane_only);

#endif /* TESTS_QTEST_VIRTIO_BLK_DATAPLANE_COMMON_H */
