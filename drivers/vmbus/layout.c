// SPDX-License-Identifier: GPL-2.0
/*
 * The layouts that vmbus-proto asserts are those of this kernel's headers. Nothing is compiled from this file: a
 * difference stops the build.
 */
#include <linux/build_bug.h>
#include <linux/hyperv.h>
#include <linux/stddef.h>

#define SIZE(type, size) static_assert(sizeof(type) == (size))
#define AT(type, member, offset) static_assert(offsetof(type, member) == (offset))

/* vmbus_proto::msg */

SIZE(struct vmbus_channel_message_header, 8);

SIZE(struct vmbus_channel_offer_channel, 196);
AT(struct vmbus_channel_offer_channel, offer.if_type, 8);
AT(struct vmbus_channel_offer_channel, offer.if_instance, 24);
AT(struct vmbus_channel_offer_channel, offer.reserved1, 40);
AT(struct vmbus_channel_offer_channel, offer.chn_flags, 56);
AT(struct vmbus_channel_offer_channel, offer.mmio_megabytes, 58);
AT(struct vmbus_channel_offer_channel, offer.u.std.user_def, 60);
AT(struct vmbus_channel_offer_channel, offer.u.pipe.pipe_mode, 60);
AT(struct vmbus_channel_offer_channel, offer.sub_channel_index, 180);
AT(struct vmbus_channel_offer_channel, offer.reserved3, 182);
AT(struct vmbus_channel_offer_channel, child_relid, 184);
AT(struct vmbus_channel_offer_channel, monitorid, 188);
AT(struct vmbus_channel_offer_channel, connection_id, 192);

SIZE(struct vmbus_channel_rescind_offer, 12);
SIZE(struct vmbus_channel_close_channel, 12);
SIZE(struct vmbus_channel_relid_released, 12);

SIZE(struct vmbus_channel_open_channel, 148);
AT(struct vmbus_channel_open_channel, child_relid, 8);
AT(struct vmbus_channel_open_channel, openid, 12);
AT(struct vmbus_channel_open_channel, ringbuffer_gpadlhandle, 16);
AT(struct vmbus_channel_open_channel, target_vp, 20);
AT(struct vmbus_channel_open_channel, downstream_ringbuffer_pageoffset, 24);
AT(struct vmbus_channel_open_channel, userdata, 28);

SIZE(struct vmbus_channel_open_result, 20);
AT(struct vmbus_channel_open_result, openid, 12);
AT(struct vmbus_channel_open_result, status, 16);

SIZE(struct vmbus_channel_gpadl_header, 20);
AT(struct vmbus_channel_gpadl_header, child_relid, 8);
AT(struct vmbus_channel_gpadl_header, gpadl, 12);
AT(struct vmbus_channel_gpadl_header, range_buflen, 16);
AT(struct vmbus_channel_gpadl_header, rangecount, 18);
AT(struct vmbus_channel_gpadl_header, range, 20);

SIZE(struct vmbus_channel_gpadl_body, 16);
AT(struct vmbus_channel_gpadl_body, msgnumber, 8);
AT(struct vmbus_channel_gpadl_body, gpadl, 12);
AT(struct vmbus_channel_gpadl_body, pfn, 16);

SIZE(struct vmbus_channel_gpadl_created, 20);
AT(struct vmbus_channel_gpadl_created, gpadl, 12);
AT(struct vmbus_channel_gpadl_created, creation_status, 16);

SIZE(struct vmbus_channel_gpadl_teardown, 16);
AT(struct vmbus_channel_gpadl_teardown, gpadl, 12);
SIZE(struct vmbus_channel_gpadl_torndown, 12);
AT(struct vmbus_channel_gpadl_torndown, gpadl, 8);

SIZE(struct vmbus_channel_initiate_contact, 40);
AT(struct vmbus_channel_initiate_contact, vmbus_version_requested, 8);
AT(struct vmbus_channel_initiate_contact, target_vcpu, 12);
AT(struct vmbus_channel_initiate_contact, interrupt_page, 16);
AT(struct vmbus_channel_initiate_contact, msg_sint, 16);
AT(struct vmbus_channel_initiate_contact, msg_vtl, 17);
AT(struct vmbus_channel_initiate_contact, feature_flags, 20);
AT(struct vmbus_channel_initiate_contact, monitor_page1, 24);
AT(struct vmbus_channel_initiate_contact, monitor_page2, 32);

SIZE(struct vmbus_channel_version_response, 16);
AT(struct vmbus_channel_version_response, version_supported, 8);
AT(struct vmbus_channel_version_response, connection_state, 9);
AT(struct vmbus_channel_version_response, msg_conn_id, 12);

SIZE(struct vmbus_channel_tl_connect_request, 40);
AT(struct vmbus_channel_tl_connect_request, guest_endpoint_id, 8);
AT(struct vmbus_channel_tl_connect_request, host_service_id, 24);

SIZE(struct vmbus_channel_modifychannel, 16);
AT(struct vmbus_channel_modifychannel, target_vp, 12);
SIZE(struct vmbus_channel_modifychannel_response, 16);
AT(struct vmbus_channel_modifychannel_response, status, 12);

static_assert(CHANNELMSG_OFFERCHANNEL == 1);
static_assert(CHANNELMSG_MODIFYCHANNEL_RESPONSE == 24);
static_assert(MAX_USER_DEFINED_BYTES == 120);
static_assert(VERSION_WIN10 == 0x00040000);
static_assert(VERSION_WIN10_V6_0 == 0x00060000);
static_assert(VMBUS_CHANNEL_TLNPI_PROVIDER_OFFER == 0x2000);

/* vmbus_proto::ring */

AT(struct hv_ring_buffer, write_index, 0);
AT(struct hv_ring_buffer, read_index, 4);
AT(struct hv_ring_buffer, interrupt_mask, 8);
AT(struct hv_ring_buffer, pending_send_sz, 12);
AT(struct hv_ring_buffer, feature_bits, 64);
AT(struct hv_ring_buffer, buffer, 4096);

/* vmbus_proto::packet, vmbus_proto::range */

SIZE(struct vmpacket_descriptor, 16);
AT(struct vmpacket_descriptor, type, 0);
AT(struct vmpacket_descriptor, offset8, 2);
AT(struct vmpacket_descriptor, len8, 4);
AT(struct vmpacket_descriptor, flags, 6);
AT(struct vmpacket_descriptor, trans_id, 8);
AT(struct vmdata_gpa_direct, range_cnt, 20);
AT(struct vmdata_gpa_direct, range, 24);
AT(struct vmtransfer_page_packet_header, xfer_pageset_id, 16);
AT(struct vmtransfer_page_packet_header, range_cnt, 20);
AT(struct vmtransfer_page_packet_header, ranges, 24);
AT(struct vmtransfer_page_range, byte_count, 0);
AT(struct vmtransfer_page_range, byte_offset, 4);
AT(struct gpa_range, byte_count, 0);
AT(struct gpa_range, byte_offset, 4);
AT(struct gpa_range, pfn_array, 8);
static_assert(VM_PKT_DATA_INBAND == 6 && VM_PKT_DATA_USING_XFER_PAGES == 7);
static_assert(VM_PKT_DATA_USING_GPA_DIRECT == 9 && VM_PKT_COMP == 11);

/* vmbus_proto::tlfs */

SIZE(struct hv_message, 256);
AT(struct hv_message, header.message_type, 0);
AT(struct hv_message, header.payload_size, 4);
AT(struct hv_message, header.message_flags, 5);
AT(struct hv_message, header.sender, 8);
AT(struct hv_message, u.payload, 16);
SIZE(union hv_synic_event_flags, 256);
AT(struct ms_hyperv_tsc_page, tsc_scale, 8);
AT(struct ms_hyperv_tsc_page, tsc_offset, 16);
static_assert(HV_STATUS_INSUFFICIENT_BUFFERS == 0x13 && HV_STATUS_INVALID_CONNECTION_ID == 0x12);
static_assert(HVCALL_POST_MESSAGE == 0x5c && HVCALL_SIGNAL_EVENT == 0x5d);
