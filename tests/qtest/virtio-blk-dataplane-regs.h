/*
 * Registers of a virtio-blk disk on PCI, for the qtests of the data plane
 *
 * The common configuration structure of a modern device, field by field, and
 * negotiation by hand, for tests that look at the registers themselves or
 * break their rules.  Everything else goes through virtio-blk-dataplane-common.
 *
 * Copyright (c) 2026 the virtio-blk data plane authors
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TESTS_QTEST_VIRTIO_BLK_DATAPLANE_REGS_H
#define TESTS_QTEST_VIRTIO_BLK_DATAPLANE_REGS_H

#include "hw/pci/pci_regs.h"
#include "virtio-blk-dataplane-common.h"

/* Offset of a field of the common configuration structure */
#define DP_REG(field) offsetof(struct virtio_pci_modern_common_cfg, field)
#define DP_CFG(field) DP_REG(cfg.field)

#define DP_BIT(n) (1ull << (n))
#define DP_S_DRIVER (VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER)
#define DP_S_FEATURES (DP_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK)
#define DP_S_LIVE (DP_S_FEATURES | VIRTIO_CONFIG_S_DRIVER_OK)

static inline uint8_t dp_reg_readb(DpDisk *disk, size_t reg)
{
    return qpci_io_readb(disk->pci->pdev, disk->pci->bar,
                         disk->pci->common_cfg_offset + reg);
}

static inline uint16_t dp_reg_readw(DpDisk *disk, size_t reg)
{
    return qpci_io_readw(disk->pci->pdev, disk->pci->bar,
                         disk->pci->common_cfg_offset + reg);
}

static inline uint32_t dp_reg_readl(DpDisk *disk, size_t reg)
{
    return qpci_io_readl(disk->pci->pdev, disk->pci->bar,
                         disk->pci->common_cfg_offset + reg);
}

static inline void dp_reg_writeb(DpDisk *disk, size_t reg, uint8_t value)
{
    qpci_io_writeb(disk->pci->pdev, disk->pci->bar,
                   disk->pci->common_cfg_offset + reg, value);
}

static inline void dp_reg_writew(DpDisk *disk, size_t reg, uint16_t value)
{
    qpci_io_writew(disk->pci->pdev, disk->pci->bar,
                   disk->pci->common_cfg_offset + reg, value);
}

static inline void dp_reg_writel(DpDisk *disk, size_t reg, uint32_t value)
{
    qpci_io_writel(disk->pci->pdev, disk->pci->bar,
                   disk->pci->common_cfg_offset + reg, value);
}

static inline void dp_set_status(DpDisk *disk, uint8_t status)
{
    dp_reg_writeb(disk, DP_CFG(device_status), status);
}

/* A word of 32 feature bits, of the device and as the driver wrote it */
static inline uint32_t dp_offer_word(DpDisk *disk, uint32_t select)
{
    dp_reg_writel(disk, DP_CFG(device_feature_select), select);
    return dp_reg_readl(disk, DP_CFG(device_feature));
}

static inline uint64_t dp_offer(DpDisk *disk)
{
    return dp_offer_word(disk, 0) | (uint64_t)dp_offer_word(disk, 1) << 32;
}

static inline void dp_accept(DpDisk *disk, uint64_t features)
{
    for (unsigned i = 0; i < 2; i++) {
        dp_reg_writel(disk, DP_CFG(guest_feature_select), i);
        dp_reg_writel(disk, DP_CFG(guest_feature), features >> (32 * i));
    }
}

static inline uint64_t dp_accepted(DpDisk *disk)
{
    uint64_t features = 0;

    for (unsigned i = 0; i < 2; i++) {
        dp_reg_writel(disk, DP_CFG(guest_feature_select), i);
        features |= (uint64_t)dp_reg_readl(disk, DP_CFG(guest_feature))
                    << (32 * i);
    }
    return features;
}

/* Reset, accept @features, set FEATURES_OK; did it stick? */
static inline bool dp_negotiate(DpDisk *disk, uint64_t features)
{
    dp_disk_reset(disk);
    dp_set_status(disk, VIRTIO_CONFIG_S_ACKNOWLEDGE);
    dp_set_status(disk, DP_S_DRIVER);
    dp_accept(disk, features);
    dp_set_status(disk, DP_S_FEATURES);
    return dp_status(disk) == DP_S_FEATURES;
}

/* May the device access memory? */
static inline void dp_set_bus_master(DpDisk *disk, bool on)
{
    QPCIDevice *pdev = disk->pci->pdev;
    uint16_t cmd = qpci_config_readw(pdev, PCI_COMMAND);

    cmd = on ? cmd | PCI_COMMAND_MASTER : cmd & ~PCI_COMMAND_MASTER;
    qpci_config_writew(pdev, PCI_COMMAND, cmd);
}

#endif /* TESTS_QTEST_VIRTIO_BLK_DATAPLANE_REGS_H */
