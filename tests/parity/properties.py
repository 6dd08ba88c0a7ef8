# SPDX-License-Identifier: GPL-2.0-or-later
# Copyright (c) 2026 the virtio-blk data plane authors
"""
Each property of a virtio-blk-pci device, at usual and at odd values.

A property that the device has and this table does not is a failure.
"""

from typing import Any, Dict, List, NamedTuple

from subject import SLOT, Subject
from tables import Row


class Values(NamedTuple):
    """
    What a property is set to, on a device that is plugged.

    fixed: other properties, for all values
    """
    values: List[Any]
    fixed: Dict[str, Any] = {}


class Express(NamedTuple):
    """The same for a device below a PCI Express root port, from the start."""
    values: List[Any]


BOOLS = [True, False]
AUTO = ['auto', 'on', 'off', 'maybe']
ACTIONS = ['auto', 'report', 'ignore', 'enospc', 'stop', 'nonsense']
SECTORS = [0, 1, 2048, 4194303, 4194304, 4294967295, -1]
SIZES = [0, 1, 511, 512, 1024, 4096, 2 << 20, 4 << 20, 4294967295, -1]
U32 = [0, 1, 16, 255, 4294967295, 4294967296, -1]

PROPERTIES: Dict[str, Any] = {
    # virtio-blk
    'drive': Values(['n0', 'n0-file', 'nowhere', '', None]),
    'share-rw': Values(BOOLS),
    'serial': Values(['', 'a', '12345678901234567890', 'x' * 21, 'x' * 300]),
    'iothread': Values(['io0', 'io1', 'nowhere', '', '/objects/io0',
                        '/machine'],
                       {'iothread-vq-mapping': None, 'num-queues': None}),
    'iothread-vq-mapping': Values([
        [], [{'iothread': 'io0'}], [{'iothread': 'io1'}, {'iothread': 'io0'}],
        [{'iothread': 'io0', 'vqs': [0, 1]}],
        [{'iothread': 'io0', 'vqs': [1]}, {'iothread': 'io1', 'vqs': [0]}],
        [{'iothread': 'io0', 'vqs': [0]}],
        [{'iothread': 'io0', 'vqs': [0, 0]}, {'iothread': 'io1', 'vqs': [1]}],
        [{'iothread': 'io0', 'vqs': [0, 9]}, {'iothread': 'io1', 'vqs': [1]}],
        [{'iothread': 'io0'}, {'iothread': 'io0'}],
        [{'iothread': 'io0', 'vqs': [0]}, {'iothread': 'io1'}],
        [{'iothread': 'nowhere'}], [{}], 'io0'],
        {'iothread': None, 'num-queues': 2}),
    'num-queues': Values([0, 1, 2, 3, 64, 1023, 1024, 1025, 65534, 65535,
                          65536, -1]),
    'queue-size': Values([0, 1, 2, 3, 4, 100, 128, 256, 1024, 2048, 32768,
                          65535, 65536]),
    'x-exact-queue-size': Values(BOOLS, {'queue-size': 16}),
    'config-wce': Values(BOOLS),
    'write-cache': Values(AUTO),
    'x-enable-wce-if-config-wce': Values(BOOLS),
    'x-direct': Values(BOOLS),
    'discard': Values(BOOLS),
    'write-zeroes': Values(BOOLS),
    'max-discard-sectors': Values(SECTORS),
    'max-write-zeroes-sectors': Values(SECTORS),
    'discard_granularity': Values(SIZES),
    'report-discard-granularity': Values(BOOLS),
    'logical_block_size': Values(SIZES),
    'physical_block_size': Values(SIZES),
    'min_io_size': Values(SIZES),
    'opt_io_size': Values(SIZES),
    'cyls': Values(U32, {'heads': 16, 'secs': 63}),
    'heads': Values(U32, {'cyls': 16, 'secs': 63}),
    'secs': Values(U32, {'cyls': 16, 'heads': 16}),
    'lcyls': Values(U32, {'lheads': 16, 'lsecs': 63}),
    'lheads': Values(U32, {'lcyls': 16, 'lsecs': 63}),
    'lsecs': Values(U32, {'lcyls': 16, 'lheads': 16}),
    'bootindex': Values([-2, -1, 0, 1, 2147483647, 2147483648]),
    'rerror': Values(ACTIONS),
    'werror': Values(ACTIONS),
    'account-invalid': Values(AUTO),
    'account-failed': Values(AUTO),
    'backend_defaults': Values(AUTO),
    'request-merging': Values(BOOLS),
    'seg-max-adjust': Values(BOOLS),
    # virtio
    'indirect_desc': Values(BOOLS),
    'event_idx': Values(BOOLS),
    'notify_on_empty': Values(BOOLS),
    'any_layout': Values(BOOLS),
    'iommu_platform': Values(BOOLS),
    'packed': Values(BOOLS),
    'in_order': Values(BOOLS),
    'queue_reset': Values(BOOLS),
    'use-started': Values(BOOLS),
    'use-disabled-flag': Values(BOOLS),
    'x-disable-legacy-check': Values(BOOLS),
    # virtio-pci
    'ioeventfd': Values(BOOLS),
    'vectors': Values([0, 1, 2, 3, 64, 2048, 2049, 4294967295, -1]),
    'class': Values([0, 0x0100, 0x0180, 0xffff, 0x10000, 4294967295]),
    'disable-legacy': Values(AUTO),
    'disable-modern': Values(BOOLS),
    'migrate-extra': Values(BOOLS),
    'modern-pio-notify': Values(BOOLS),
    'page-per-vq': Values(BOOLS),
    'virtio-pci-bus-master-bug-migration': Values(BOOLS),
    'x-ignore-backend-features': Values(BOOLS),
    'ats': Express(BOOLS),
    'aer': Express(BOOLS),
    'x-ats-page-aligned': Express(BOOLS),
    'x-disable-pcie': Express(BOOLS),
    'x-pcie-ari-nextfn-1': Express(BOOLS),
    'x-pcie-deverr-init': Express(BOOLS),
    'x-pcie-err-unc-mask': Express(BOOLS),
    'x-pcie-ext-tag': Express(BOOLS),
    'x-pcie-extcap-init': Express(BOOLS),
    'x-pcie-flr-init': Express(BOOLS),
    'x-pcie-lnkctl-init': Express(BOOLS),
    'x-pcie-lnksta-dllla': Express(BOOLS),
    'x-pcie-pm-init': Express(BOOLS),
    'x-pcie-pm-no-soft-reset': Express(BOOLS),
    # PCI
    'addr': Values([f'{SLOT:x}', f'{SLOT:x}.0', '04.1', '1f.7', '20', '-1',
                    '']),
    'acpi-index': Values([0, 1, 16383, 16384, 4294967295]),
    'busnr': Values([0, 1]),
    'failover_pair_id': Values(['', 'net0']),
    'multifunction': Values(BOOLS),
    'rombar': Values([-1, 0, 1]),
    'romfile': Values(['', 'nowhere.rom']),
    'romsize': Values([0, 4096, 5000, 4294967295]),
    'x-max-bounce-buffer-size': Values([0, 4096, 1 << 40]),
    # what is no setting
    'virtio-backend': Values(['x']),
    'x-data-plane-info': Values([{}, 'x']),
    #: The two that are compared; this is what both refuse.
    'x-data-plane': Values(['maybe', 1]),
    #: Needs a data plane; tested in virtio-blk-dataplane-inflight-test.c.
    'x-stall-timeout': Values([0, -1, 4294967296, 'maybe']),
    #: Needs a data plane; tested in virtio-blk-dataplane-fixed-test.c.
    'x-fixed-buffers': Values([False, 'maybe', 1]),
}


def plugged(subject: Subject, name: str, values: Values) -> None:
    """Each value on a disk that is plugged, used, and unplugged."""
    subject.boot()
    for value in values.values:
        shown = repr(value)
        subject.note('value', shown)
        subject.must('blockdev-add', subject.node('n0', 'qcow2'))
        device = {**subject.device(**values.fixed), name: value}
        if value is None:
            del device[name]
        if subject.cmd('device_add', device):
            use(subject, device)
            subject.unplug(slot=place(device))
        subject.must('blockdev-del', node_name='n0')
    subject.quit()


def place(device: Dict[str, Any]) -> int:
    """The slot of a disk that was taken."""
    address = device['addr']
    return 2 if address == '-1' else int(address.split('.')[0], 16)


def use(subject: Subject, device: Dict[str, Any]) -> None:
    """The disk that has been plugged."""
    legacy = device.get('disable-modern') is True
    subject.look()
    if device.get('disable-legacy') == 'on' and legacy:
        return
    if device['addr'].endswith(('.1', '.7')):
        # A guest that scans its bus does not find it.
        return
    threads = device.get('iothread') or device.get('iothread-vq-mapping')
    served = device['id'] if threads else None
    subject.start(subject.find(place(device), legacy=legacy),
                  packed=bool(device.get('packed')))
    subject.io(served=served)
    subject.look()


def express(subject: Subject, name: str, values: Express) -> None:
    """One value each time QEMU starts."""
    for value in values.values:
        subject.note('value', repr(value))
        device = {**subject.device(bus='rp', addr='0'), name: value}
        if subject.boot([subject.node('n0', 'qcow2')],
                        [{'driver': 'pcie-root-port', 'id': 'rp',
                          'addr': '5'}, device], machine='q35'):
            subject.find_bridge(5)
            subject.start(subject.find(0, 1))
            subject.io()
            subject.finish('n0.img')


def rows() -> List[Row]:
    """A row for each."""
    table = []
    for name, values in PROPERTIES.items():
        run = plugged if isinstance(values, Values) else express
        table.append(Row(
            f'property {name}',
            lambda subject, run=run, name=name, values=values:
            run(subject, name, values)))
    table.append(Row('properties that QEMU has', enumerate_properties))
    return table


def enumerate_properties(subject: Subject) -> None:
    """Each has its place in the table, and each in the table exists."""
    subject.boot()
    listed = subject.must('device-list-properties', typename='virtio-blk-pci')
    subject.finish()
    subject.same(PROPERTIES, [item['name'] for item in listed],
                 'properties of virtio-blk-pci')


