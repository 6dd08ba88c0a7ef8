/*
 * The device side of one virtqueue
 *
 * Knows the VIRTIO rings and guest memory.  Does not know block devices, nor
 * AioContexts: who calls it when is its owner's business, as long as calls for
 * one Vring never overlap.
 *
 * Life of a Vring:
 *
 *   vring_setup()                  takes the queue over from QEMU's VirtQueue
 *     vring_refresh_memory()       whenever guest memory has changed
 *     vring_disable_notification()
 *     vring_pop()                  until it returns 0
 *     vring_enable_notification()  true: look again
 *     vring_push()                 per request that is done
 *     vring_publish()              shows them to the driver, all at once
 *     vring_should_notify()        once after the last publish of a batch
 *   vring_teardown()               hands the queue back
 *
 * Who owns what:
 *
 *   device
 *     VringMemory         follows the RAM of an address space
 *       VringRamTable     the current one; counted, never changed, replaced
 *                         when RAM comes or goes
 *         VringRamRegion  one for each stretch of RAM, with a reference to it
 *   queue
 *     Vring               from vring_setup() to vring_teardown()
 *       VringArea         three: where the ring itself is
 *       VringOrderEntry   one for each entry, with VIRTIO_F_IN_ORDER
 *       VringRamRef       the table that the Vring uses.  An older one lives
 *                         until the last element that was mapped by it is
 *                         given back.
 *   caller of vring_pop()
 *     VirtQueueElement
 *     VringVectors        the element's vectors; points to the VringRamRef that
 *                         keeps them alive
 *
 * A driver that breaks the rules makes vring_pop() return an error; from then
 * on the Vring is broken and takes and publishes nothing until it is set up
 * anew, which takes a device reset.  A ring whose memory has gone away is not
 * broken but lost: vring_pop() says so until the memory returns.  What is
 * pushed meanwhile is dropped, and then the device needs a reset, too.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_DATAPLANE_VRING_H
#define HW_VIRTIO_DATAPLANE_VRING_H

#include "hw/virtio/virtio.h"
#include "hw/virtio/dataplane/vring-memory.h"

/*
 * What a driver can do wrong.  The policy is the same for all: the device
 * needs a reset (DEVICE_NEEDS_RESET, VIRTIO 1.3, 2.1.2).
 */
typedef enum VringError {
    VRING_ERR_AVAIL_IDX = 1,    /* available index more than a ring ahead */
    VRING_ERR_HEAD,             /* available entry is not a descriptor */
    VRING_ERR_QUEUE_FULL,       /* more buffers in flight than the queue has */
    VRING_ERR_NEXT,             /* next is not a descriptor */
    VRING_ERR_LOOP,             /* chain longer than its table */
    VRING_ERR_UNAVAILABLE,      /* list goes on where nothing is available */
    VRING_ERR_TOO_LONG,         /* more than VIRTQUEUE_MAX_SIZE vectors */
    VRING_ERR_ORDER,            /* device-readable behind device-writable */
    VRING_ERR_ADDRESS,          /* buffer is not in memory of that direction */
    VRING_ERR_LENGTH,           /* chain describes 2^32 bytes or more */
    VRING_ERR_INDIRECT_FEATURE, /* indirect table without the feature */
    VRING_ERR_INDIRECT_NESTED,  /* indirect table within another */
    VRING_ERR_INDIRECT_NEXT,    /* INDIRECT and NEXT in one descriptor */
    VRING_ERR_TABLE_LENGTH,     /* table length 0, uneven, or too large */
    VRING_ERR_TABLE_ADDRESS,    /* indirect table is not in RAM */
    VRING_ERR_RING_LOST,        /* the ring's memory has gone away */
    VRING_ERR__MAX,
} VringError;

/*
 * Vectors that need no allocation: enough for a header, a status, and 64 KiB in
 * pages.
 */
#define VRING_INLINE_VECTORS 18

/*
 * The table that a Vring uses, and the number of popped elements that hold
 * pointers into it.  Only the last element returns the table, so that no
 * element pays for a reference of its own.
 */
typedef struct VringRamRef {
    VringRamTable *table;
    unsigned inflight;
} VringRamRef;

/* What an element's vectors point to if no VringRamRef keeps that alive */
typedef enum VringMapping {
    VRING_MAPPED,       /* guest RAM, with a reference each */
    VRING_BOUNCED,      /* same, or a copy of what is not RAM */
    VRING_UNMAPPED,     /* nothing: only guest addresses and lengths are set */
} VringMapping;

/*
 * The memory of an element's vectors, and what keeps the guest memory that
 * they point to alive: @ram_ref, or, if that is NULL, what @mapping says.
 */
typedef struct VringVectors {
    VringRamRef *ram_ref;
    VringMapping mapping;       /* VRING_MAPPED while not in use */
    unsigned capacity;
    struct iovec *iov;
    hwaddr *addr;
    struct iovec inline_iov[VRING_INLINE_VECTORS];
    hwaddr inline_addr[VRING_INLINE_VECTORS];
} VringVectors;

/*
 * One of the three areas of a virtqueue; what is in it is known to the format
 * only.  Usually it is contiguous in the host.  Behind an IOMMU each page may
 * be elsewhere.
 */
typedef struct VringArea {
    uint8_t *host;              /* NULL: see @pages */
    const VringRamRegion *region;   /* that @host is in */
    hwaddr addr;                /* guest address */
    uint32_t size;              /* bytes */
    uint32_t npages;
    VringRamRegion *pages;      /* each with a reference */
} VringArea;

/* An element that was popped, with VIRTIO_F_IN_ORDER. */
typedef struct VringOrderEntry {
    uint32_t len;               /* bytes written, if @done */
    uint16_t id;
    uint16_t ndescs;            /* slots of the ring that it takes */
    bool done;                  /* waits for those before it */
    bool detached;              /* @done, and the driver is not to see it */
} VringOrderEntry;

typedef struct VringConfig {
    unsigned num;               /* queue size; split: a power of two */
    hwaddr desc;                /* guest addresses of the three areas, */
    hwaddr avail;               /* packed: the driver's event structure */
    hwaddr used;                /* packed: the device's event structure */
    bool packed;                /* negotiated features */
    bool in_order;
    bool event_idx;
    bool indirect;
    bool notify_on_empty;
    bool big_endian;            /* byte order of a split ring */
    bool bounce;                /* the owner maps what is not RAM by itself */
} VringConfig;

typedef struct Vring {
    /* Read at each operation, written only by setup and memory changes. */
    VringArea desc;
    VringArea avail;            /* packed: driver event suppression */
    VringArea used;             /* packed: device event suppression */
    VringRamRef *ram_ref;
    VringMemory *mem;
    VringOrderEntry *order;     /* by position in the ring; NULL: any order */
    VringConfig config;
    uint16_t mask;              /* split: config.num - 1 */
    bool swap;                  /* ring is not in host byte order */
    bool lost;                  /* its areas are not all in RAM; atomic */

    /* Written at each operation, in the owner's context. */
    bool broken;
    bool dropped;               /* an element, while lost or broken; atomic */
    bool signalled_used_valid;
    bool avail_wrap;            /* packed: wrap counters of the positions */
    bool used_wrap;
    uint16_t last_avail_idx;    /* next entry to pop */
    uint16_t shadow_avail_idx;  /* split: the driver's index when last read */
    uint16_t used_idx;          /* next entry to fill */
    uint16_t signalled_used;    /* split: what was visible at the last check */
    uint16_t first_flags;       /* packed: those of the first unpublished */
    uint16_t event_flags;       /* packed: what the driver sees of ours */
    uint16_t order_head;        /* slot of the oldest element, with @order */
    unsigned unpublished;       /* elements pushed and not yet visible */
    unsigned unpublished_slots; /* packed: descriptors that they take */
    unsigned unsignalled_slots; /* packed: made visible since the last check */
    unsigned inuse;             /* slots popped and not yet returned */
    unsigned region_hint;       /* see vring_ram_table_find() */
} Vring;

/**
 * vring_error_str: what the driver did wrong, for an error message
 */
const char *vring_error_str(VringError err);

/**
 * vring_open: prepare a Vring whose positions are those after a reset
 * @vring: contents are overwritten
 * @config: copied; must satisfy VIRTIO 1.3, 2.7 and 2.7.1, or 2.8 and 2.8.10.1
 * @mem: guest memory; outlives the Vring
 *
 * Returns: false if an area is not in RAM, which leaves @vring->lost true, or
 *          not aligned, or if the format does not allow the size; nothing is
 *          held then
 *
 * Pair: vring_close().  Devices call vring_setup() instead.
 *
 * Context: no other call for @vring meanwhile
 */
bool vring_open(Vring *vring, const VringConfig *config, VringMemory *mem,
                Error **errp);

/**
 * vring_close: the pair of vring_open()
 *
 * No element may hold on to the Vring's memory: each was pushed, detached or
 * pinned.
 */
void vring_close(Vring *vring);

/**
 * vring_setup: take a virtqueue over from QEMU's VirtQueue
 * @vring: contents are overwritten
 * @vdev: the device
 * @n: index of the queue, which the driver has enabled
 * @mem: guest memory of @vdev; outlives the Vring
 *
 * Returns: false with @errp set if this kind of queue cannot be served; the
 *          VirtQueue is unchanged then.  If not even QEMU's own path could
 *          serve it, because its rings are not in RAM or its size was changed
 *          in use, the device is broken; the caller calls virtio_error().
 *
 * Pair: vring_teardown()
 *
 * Context: BQL held
 */
bool vring_setup(Vring *vring, VirtIODevice *vdev, int n, VringMemory *mem,
                 Error **errp);

/**
 * vring_teardown: hand a virtqueue back to QEMU's VirtQueue
 *
 * All that was pushed has been published, and no element holds on to the
 * Vring's memory (see vring_pin()).
 *
 * Context: BQL held, drained
 */
void vring_teardown(Vring *vring, VirtIODevice *vdev, int n);

/**
 * vring_refresh_memory: use the current memory table
 *
 * To be called at the start of each batch, and after each change of memory.
 * Costs one load where nothing changed.  If the ring's areas are gone the
 * Vring gets lost, which vring_pop() reports; it recovers when they return.
 * What was pushed is published first.
 *
 * Returns: number of elements that became visible, as vring_publish()
 *
 * Context: the queue's AioContext
 */
unsigned vring_refresh_memory(Vring *vring);

/**
 * vring_vectors_init: make empty vectors
 * Pair: vring_vectors_release()
 */
void vring_vectors_init(VringVectors *vecs);

/**
 * vring_vectors_release: free what pop allocated; @vecs can be used again
 * @vecs: not mapped any more: its element was pushed or detached
 */
void vring_vectors_release(VringVectors *vecs);

/**
 * vring_vectors_spare: vectors that a popped element does not use
 * @elem: popped with @vecs
 * @num: set to their number
 *
 * Returns: the first of them; the caller's until vring_vectors_release()
 */
static inline struct iovec *vring_vectors_spare(const VringVectors *vecs,
                                                const VirtQueueElement *elem,
                                                unsigned *num)
{
    unsigned used = elem->out_num + elem->in_num;

    *num = vecs->capacity - used;
    return vecs->iov + used;
}

/**
 * vring_pop: take the next available buffer
 * @vring: set up
 * @elem: filled in; its vectors lie in @vecs
 * @vecs: initialised, not in use
 *
 * Every field of guest memory is read once and checked in the copy that is
 * used.  On error nothing is held, and the Vring is broken, except that
 * -VRING_ERR_RING_LOST leaves it as it was.
 *
 * With VringConfig.bounce an element that is not wholly in RAM is left
 * unmapped: see vring_is_mapped().  Otherwise it is an error.
 *
 * Returns: 1 if @elem was filled in, 0 if nothing is available or the Vring
 *          is broken already, else a negative VringError
 *
 * Pair: vring_push() or vring_detach(), or at once vring_unpop()
 *
 * Context: the queue's AioContext
 */
int vring_pop(Vring *vring, VirtQueueElement *elem, VringVectors *vecs);

/**
 * vring_pop_full: what vring_pop() would say to a caller without a buffer
 *
 * For a caller with as many elements in flight as the queue has entries: one
 * more is a mistake of the driver.
 *
 * Returns: 0 if nothing is available, else a negative VringError
 *
 * Context: the queue's AioContext
 */
int vring_pop_full(Vring *vring);

/**
 * vring_push: put a used element into the ring, not yet visible to the driver
 * @elem: from vring_pop() or, with @vecs NULL, mapped by QEMU's virtqueue code
 * @vecs: what vring_pop() used for @elem; not mapped afterwards
 * @len: bytes written from the first device-writable one on (2.7.8.2)
 *
 * All device-writable memory of @elem is marked dirty.  If the Vring is
 * broken or lost the element is only unmapped: the driver never sees it.
 * With VIRTIO_F_IN_ORDER an element waits for all that were popped before it.
 *
 * Context: the queue's AioContext
 */
void vring_push(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs,
                uint32_t len);

/**
 * vring_detach: give a popped element up without using it
 *
 * Context: the queue's AioContext, or drained
 */
void vring_detach(Vring *vring, const VirtQueueElement *elem,
                  VringVectors *vecs);

/**
 * vring_unpop: put the element that was popped last back into the ring
 *
 * It is going to be popped again, by this Vring or by its heir.
 *
 * Context: the queue's AioContext, or drained
 */
void vring_unpop(Vring *vring, const VirtQueueElement *elem,
                 VringVectors *vecs);

/**
 * vring_is_mapped: do the vectors of a popped element point anywhere?
 *
 * If not, the owner maps each with dma_memory_map(), which needs the BQL, and
 * calls vring_set_bounced().  An element that is given up may stay unmapped.
 *
 * Context: any thread
 */
static inline bool vring_is_mapped(const VringVectors *vecs)
{
    return likely(vecs->ram_ref) || vecs->mapping != VRING_UNMAPPED;
}

/**
 * vring_set_bounced: note that the owner has mapped an element by itself
 * @iov: as many vectors as @elem has, device-readable ones first
 *
 * If a device-writable one is a copy the owner unmaps each before it calls
 * vring_push(), with dma_memory_unmap(), which needs the BQL again, and calls
 * vring_set_unmapped().  Otherwise vring_push() unmaps them, as vring_detach()
 * and vring_unpop() do in any case: no copy is written back then.
 *
 * Context: no other call for @elem meanwhile
 */
void vring_set_bounced(const VirtQueueElement *elem, VringVectors *vecs,
                       const struct iovec *iov);

/**
 * vring_is_bounced: has the owner mapped an element by itself?
 *
 * Context: any thread
 */
static inline bool vring_is_bounced(const VringVectors *vecs)
{
    return unlikely(!vecs->ram_ref) && vecs->mapping == VRING_BOUNCED;
}

/**
 * vring_set_unmapped: note that the owner has unmapped an element by itself
 *
 * Context: no other call for @elem meanwhile
 */
static inline void vring_set_unmapped(VringVectors *vecs)
{
    vecs->mapping = VRING_UNMAPPED;
}

/**
 * vring_pin: make an element's mappings independent of the Vring
 *
 * Afterwards the element is one that QEMU's virtqueue code can push, detach
 * and migrate, and the Vring can be torn down.
 *
 * Context: the queue's AioContext, or drained
 */
void vring_pin(Vring *vring, const VirtQueueElement *elem, VringVectors *vecs);

/**
 * vring_publish: show the driver all that was pushed
 *
 * Returns: number of elements that became visible; if not 0,
 *          vring_should_notify() has to be asked, now or after more of them
 *
 * Context: the queue's AioContext
 */
unsigned vring_publish(Vring *vring);

/**
 * vring_unpublished: number of elements that vring_publish() would show
 *
 * Context: the queue's AioContext
 */
static inline unsigned vring_unpublished(const Vring *vring)
{
    return vring->unpublished;
}

/**
 * vring_should_notify: does the driver want a used buffer notification?
 *
 * Takes all that was published since the last time into account.
 *
 * Context: the queue's AioContext
 */
bool vring_should_notify(Vring *vring);

/**
 * vring_disable_notification: spare the driver its available notifications
 *
 * A hint only: the driver may send them all the same.
 *
 * Context: the queue's AioContext
 */
void vring_disable_notification(Vring *vring);

/**
 * vring_enable_notification: ask for available buffer notifications
 *
 * Returns: true if buffers came in meanwhile, for which no notification is
 *          going to be sent: look again
 *
 * Context: the queue's AioContext
 */
bool vring_enable_notification(Vring *vring);

/**
 * vring_more_avail: is there a buffer to pop?
 *
 * Context: the queue's AioContext
 */
bool vring_more_avail(Vring *vring);

#endif /* HW_VIRTIO_DATAPLANE_VRING_H */
