# What the tests of the data plane need of an Arm machine: see scripts/build
#
# Copyright (c) 2026 the virtio-blk data plane authors
#
# SPDX-License-Identifier: GPL-2.0-or-later

CONFIG_ARM_VIRT=y
CONFIG_VIRTIO_PCI=y
CONFIG_VIRTIO_BLK=y
