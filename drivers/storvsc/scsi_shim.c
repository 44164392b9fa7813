// SPDX-License-Identifier: GPL-2.0
/*
 * SCSI hosts for Rust: kernel::bindings has no SCSI headers. This file moves values between the structures of the SCSI
 * layer and those below, and decides nothing. The Rust side is scsi_ffi.rs, which asserts the same layouts. Commands do not
 * come here: scsi.rs takes them.
 */
#include <linux/blkdev.h>
#include <linux/build_bug.h>
#include <linux/module.h>
#include <linux/stddef.h>
#include <linux/string.h>
#include <scsi/scsi.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_devinfo.h>
#include <scsi/scsi_host.h>

#define SIZE(type, size) static_assert(sizeof(type) == (size))
#define AT(type, member, offset) static_assert(offsetof(type, member) == (offset))

/* What the driver sets of a device once SCSI has looked at it. */
struct hv_rs_scsi_device {
	u8 vendor[8];		/* to the driver */
	u32 timeout_ms;
	u8 scsi_level;
	u8 no_report_opcodes;
	u8 no_write_same;
	u8 reserved;
};

SIZE(struct hv_rs_scsi_device, 16);
AT(struct hv_rs_scsi_device, timeout_ms, 8);
AT(struct hv_rs_scsi_device, scsi_level, 12);
AT(struct hv_rs_scsi_device, no_write_same, 14);
static_assert(SCSI_SPC_3 == 6);

struct hv_rs_scsi_limits {
	u32 can_queue;
	u32 hw_queues;
	u32 max_sectors;
	u32 max_segments;
	u32 max_channel;
	u32 max_id;
	u64 max_lun;
	u32 max_cmd_len;
	u32 dma_align_mask;
};

SIZE(struct hv_rs_scsi_limits, 40);
AT(struct hv_rs_scsi_limits, max_lun, 24);
AT(struct hv_rs_scsi_limits, dma_align_mask, 36);

struct hv_rs_scsi_ops {
	/* True: the command is over; false: it goes on. */
	bool (*reset)(const void *data);
	void (*configure)(const void *data, struct hv_rs_scsi_device *device);
};

SIZE(struct hv_rs_scsi_ops, 16);

struct hv_rs_scsi_host {
	const void *data;	/* scsi.rs reads it for each command */
	const struct hv_rs_scsi_ops *ops;
};

AT(struct hv_rs_scsi_host, data, 0);

/* In scsi.rs, as are all other functions that are called for each command. */
enum scsi_qc_status hv_rs_scsi_queuecommand(struct Scsi_Host *shost, struct scsi_cmnd *cmd);
void hv_rs_scsi_commit_rqs(struct Scsi_Host *shost, u16 queue);

#define HV_RS_TAGGED (1UL << 32)

static int hv_rs_scsi_sdev_init(struct scsi_device *sdev)
{
	/* As commands need it: host, channel, target, unit. Limits of hosts are such that the latter fit; see hv_rs_scsi_host_add. */
	sdev->hostdata = (void *)(unsigned long)((sdev->host->host_no & 0xff) | (sdev->channel & 0xff) << 8 |
						 (sdev->id & 0xff) << 16 | (u32)(sdev->lun & 0xff) << 24);
	/*
	 * Microsoft's targets claim SPC-2, and implement what came later, VPD pages among it. Hosts report DVD drives as of
	 * unknown type, and support REPORT LUNS all the same.
	 */
	sdev->sdev_bflags = BLIST_REPORTLUN2 | BLIST_TRY_VPD_PAGES;
	return 0;
}

static int hv_rs_scsi_sdev_configure(struct scsi_device *sdev, struct queue_limits *lim)
{
	struct hv_rs_scsi_host *host = shost_priv(sdev->host);
	struct hv_rs_scsi_device d = {
		.scsi_level = sdev->scsi_level,
		.no_report_opcodes = sdev->no_report_opcodes,
		.no_write_same = sdev->no_write_same,
	};

	/* Known since INQUIRY, which came before. */
	if (sdev->tagged_supported)
		sdev->hostdata = (void *)((unsigned long)sdev->hostdata | HV_RS_TAGGED);
	memcpy(d.vendor, sdev->vendor, sizeof(d.vendor));
	host->ops->configure(host->data, &d);
	blk_queue_rq_timeout(sdev->request_queue, msecs_to_jiffies(d.timeout_ms));
	sdev->scsi_level = d.scsi_level;
	sdev->no_report_opcodes = d.no_report_opcodes;
	sdev->no_write_same = d.no_write_same;
	return 0;
}

static int hv_rs_scsi_change_queue_depth(struct scsi_device *sdev, int depth)
{
	return scsi_change_queue_depth(sdev, min(depth, sdev->host->can_queue));
}

static int hv_rs_scsi_bios_param(struct scsi_device *sdev, struct gendisk *disk, sector_t capacity, int *geometry)
{
	sector_t cylinders = capacity;

	/* There are no heads. The same numbers as the C driver makes up. */
	geometry[0] = 0xff;
	geometry[1] = 0x3f;
	sector_div(cylinders, 0xff * 0x3f);
	if ((cylinders + 1) * 0xff * 0x3f < capacity)
		cylinders = 0xffff;
	geometry[2] = cylinders;
	return 0;
}

/*
 * The host answers each command, but takes its time at times: minutes have been seen. There is nothing to win by giving up.
 */
static enum scsi_timeout_action hv_rs_scsi_timed_out(struct scsi_cmnd *cmd)
{
	return SCSI_EH_RESET_TIMER;
}

static int hv_rs_scsi_host_reset(struct scsi_cmnd *cmd)
{
	struct hv_rs_scsi_host *host = shost_priv(cmd->device->host);

	return host->ops->reset(host->data) ? SUCCESS : FAILED;
}

static const struct scsi_host_template hv_rs_scsi_template = {
	.module = THIS_MODULE,
	.name = "storvsc_host_t",
	.proc_name = "storvsc_host",
	.queuecommand = hv_rs_scsi_queuecommand,
	.commit_rqs = hv_rs_scsi_commit_rqs,
	.eh_timed_out = hv_rs_scsi_timed_out,
	.eh_host_reset_handler = hv_rs_scsi_host_reset,
	.sdev_init = hv_rs_scsi_sdev_init,
	.sdev_configure = hv_rs_scsi_sdev_configure,
	.change_queue_depth = hv_rs_scsi_change_queue_depth,
	.bios_param = hv_rs_scsi_bios_param,
	.cmd_per_lun = 2048,
	.this_id = -1,
	/* One range of guest memory names all data: no gaps between pages. */
	.virt_boundary_mask = 4096 - 1,
	.no_write_same = 1,
	.track_queue_depth = 1,
};

/* May sleep. NULL without memory. */
struct Scsi_Host *hv_rs_scsi_host_alloc(void)
{
	return scsi_host_alloc(&hv_rs_scsi_template, sizeof(struct hv_rs_scsi_host));
}

void hv_rs_scsi_host_put(struct Scsi_Host *shost)
{
	scsi_host_put(shost);
}

u32 hv_rs_scsi_host_number(struct Scsi_Host *shost)
{
	return shost->host_no;
}

/* May sleep. @ops and @data stay until hv_rs_scsi_host_remove() has returned. */
int hv_rs_scsi_host_add(struct Scsi_Host *shost, struct device *dev, const struct hv_rs_scsi_limits *l,
			const struct hv_rs_scsi_ops *ops, const void *data)
{
	struct hv_rs_scsi_host *host = shost_priv(shost);

	host->ops = ops;
	host->data = data;
	shost->can_queue = l->can_queue;
	shost->nr_hw_queues = l->hw_queues;
	shost->max_sectors = l->max_sectors;
	shost->sg_tablesize = l->max_segments;
	shost->max_channel = l->max_channel;
	shost->max_id = l->max_id;
	shost->max_lun = l->max_lun;
	shost->max_cmd_len = l->max_cmd_len;
	dma_set_min_align_mask(dev, l->dma_align_mask);
	return scsi_add_host(shost, dev);
}

/* May sleep: waits for the commands in flight. */
void hv_rs_scsi_host_remove(struct Scsi_Host *shost)
{
	scsi_remove_host(shost);
}

/* The following may sleep, and wait for commands. On a host that was removed they do nothing. */

void hv_rs_scsi_scan(struct Scsi_Host *shost)
{
	scsi_scan_host(shost);
}

/* Sends TEST UNIT READY to all devices: those that are gone will answer so. */
void hv_rs_scsi_test_all(struct Scsi_Host *shost)
{
	struct scsi_device *sdev;

	mutex_lock(&shost->scan_mutex);
	shost_for_each_device(sdev, shost)
		scsi_test_unit_ready(sdev, 1, 1, NULL);
	mutex_unlock(&shost->scan_mutex);
}

int hv_rs_scsi_add_device(struct Scsi_Host *shost, u32 channel, u32 target, u64 lun)
{
	return scsi_add_device(shost, channel, target, lun);
}

void hv_rs_scsi_remove_device(struct Scsi_Host *shost, u32 channel, u32 target, u64 lun)
{
	struct scsi_device *sdev = scsi_device_lookup(shost, channel, target, lun);

	if (sdev) {
		scsi_remove_device(sdev);
		scsi_device_put(sdev);
	}
}

void hv_rs_scsi_rescan_device(struct Scsi_Host *shost, u32 channel, u32 target, u64 lun)
{
	struct scsi_device *sdev = scsi_device_lookup(shost, channel, target, lun);

	if (sdev) {
		scsi_rescan_device(sdev);
		scsi_device_put(sdev);
	}
}
