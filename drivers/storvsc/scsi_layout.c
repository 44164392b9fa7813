// SPDX-License-Identifier: GPL-2.0
/*
 * Where the members of the SCSI layer's structures lie that each command needs, for scsi_layout.rs: kernel::bindings has no SCSI
 * headers. Kbuild makes that file out of this one's assembly; nothing of it is linked.
 */
#include <linux/blk-mq.h>
#include <linux/build_bug.h>
#include <linux/kbuild.h>
#include <scsi/scsi.h>
#include <scsi/scsi_cmnd.h>
#include <scsi/scsi_device.h>
#include <scsi/scsi_host.h>

/* The types that scsi_ffi.rs and scsi_command.rs take the members for. */
#define SIZE(type, member, size) static_assert(sizeof_field(struct type, member) == (size))

SIZE(scsi_cmnd, cmd_len, 2);
SIZE(scsi_cmnd, sc_data_direction, 4);
SIZE(scsi_cmnd, sdb.table.sgl, 8);
SIZE(scsi_cmnd, flags, 4);
SIZE(scsi_cmnd, sdb.length, 4);
SIZE(scsi_cmnd, sense_buffer, 8);
SIZE(scsi_cmnd, resid_len, 4);
SIZE(scsi_cmnd, result, 4);
SIZE(scsi_device, hostdata, 8);
SIZE(scsi_device, sdev_state, 4);
SIZE(request, tag, 4);
SIZE(request, cmd_flags, 4);
SIZE(request, mq_hctx, 8);
SIZE(blk_mq_hw_ctx, queue_num, 4);
/* The driver reads 16 bytes, aligned to 4. */
static_assert(sizeof_field(struct scsi_cmnd, cmnd) == 32 && offsetof(struct scsi_cmnd, cmnd) % 4 == 0);
static_assert(DMA_TO_DEVICE == 1 && DMA_FROM_DEVICE == 2 && DMA_NONE == 3);
/* Host bytes and lengths that scsi_command.rs names. */
static_assert(DID_NO_CONNECT == 0x01 && DID_BUS_BUSY == 0x02 && DID_ERROR == 0x07 && DID_RESET == 0x08);
static_assert(DID_PASSTHROUGH == 0x0a && DID_REQUEUE == 0x0d);
static_assert(SCSI_SENSE_BUFFERSIZE == 96);
static_assert(DID_ABORT == 0x05 && SCMD_LAST == 1 << 2);
static_assert((__force u32)REQ_OP_DRV_IN == 34 && (__force u32)REQ_OP_DRV_OUT == 35 && REQ_OP_MASK == 0xff);
static_assert(SDEV_CREATED == 1 && SDEV_CANCEL == 3 && SDEV_DEL == 4 && SDEV_CREATED_BLOCK == 9);

void hv_rs_scsi_layout(void);
void hv_rs_scsi_layout(void)
{
	OFFSET(HOST_DATA, Scsi_Host, hostdata);
	OFFSET(DEVICE_HOSTDATA, scsi_device, hostdata);
	OFFSET(DEVICE_STATE, scsi_device, sdev_state);
	OFFSET(COMMAND_DEVICE, scsi_cmnd, device);
	OFFSET(COMMAND_CDB, scsi_cmnd, cmnd);
	OFFSET(COMMAND_FLAGS, scsi_cmnd, flags);
	OFFSET(COMMAND_CDB_LEN, scsi_cmnd, cmd_len);
	OFFSET(COMMAND_DIRECTION, scsi_cmnd, sc_data_direction);
	OFFSET(COMMAND_SG, scsi_cmnd, sdb.table.sgl);
	OFFSET(COMMAND_LENGTH, scsi_cmnd, sdb.length);
	OFFSET(COMMAND_SENSE, scsi_cmnd, sense_buffer);
	OFFSET(COMMAND_RESIDUAL, scsi_cmnd, resid_len);
	OFFSET(COMMAND_RESULT, scsi_cmnd, result);
	/* A command follows its request. */
	DEFINE(REQUEST_SIZE, sizeof(struct request));
	OFFSET(REQUEST_TAG, request, tag);
	OFFSET(REQUEST_FLAGS, request, cmd_flags);
	OFFSET(REQUEST_QUEUE, request, mq_hctx);
	OFFSET(QUEUE_NUMBER, blk_mq_hw_ctx, queue_num);
	DEFINE(HOST_BUSY, SCSI_MLQUEUE_HOST_BUSY);
}
