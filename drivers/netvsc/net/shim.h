/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Network devices for Rust: what the C files of this layer share. The Rust side of each structure is in ffi.rs, which asserts the
 * same layouts.
 */
#ifndef HV_RS_NET_SHIM_H
#define HV_RS_NET_SHIM_H

#include <linux/build_bug.h>
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/netdevice.h>
#include <linux/stddef.h>
#include <net/xdp.h>

#define SIZE(type, size) static_assert(sizeof(type) == (size))
#define AT(type, member, offset) static_assert(offsetof(type, member) == (offset))

/* What a driver needs to know of a packet to send. */
struct hv_rs_tx {
	struct sk_buff *skb;
	struct netdev_queue *txq;
	const u8 *data;
	u32 len;
	u32 headlen;		/* bytes at data; the rest is in fragments */
	u32 hash;		/* 0: not known */
	u32 flags;		/* HV_RS_TX_* */
	u16 queue;
	u16 vlan_tci;
	u16 gso_size;
	u16 transport;		/* offset of the TCP or UDP header */
	/* After hv_rs_tx_prepare(). */
	u32 room;		/* bytes at head that may be written */
	u8 *head;
};

SIZE(struct hv_rs_tx, 64);
AT(struct hv_rs_tx, txq, 8);
AT(struct hv_rs_tx, data, 16);
AT(struct hv_rs_tx, len, 24);
AT(struct hv_rs_tx, headlen, 28);
AT(struct hv_rs_tx, hash, 32);
AT(struct hv_rs_tx, flags, 36);
AT(struct hv_rs_tx, queue, 40);
AT(struct hv_rs_tx, vlan_tci, 42);
AT(struct hv_rs_tx, gso_size, 44);
AT(struct hv_rs_tx, transport, 46);
AT(struct hv_rs_tx, room, 48);
AT(struct hv_rs_tx, head, 56);

#define HV_RS_TX_VLAN		BIT(0)	/* vlan_tci is to be put into the frame */
#define HV_RS_TX_VLAN_INSIDE	BIT(1)	/* the frame begins with a VLAN header */
#define HV_RS_TX_GSO		BIT(2)
#define HV_RS_TX_PARTIAL	BIT(3)	/* the checksum is to be filled in */
#define HV_RS_TX_IPV4		BIT(4)	/* with one of the two before: what the packet is */
#define HV_RS_TX_IPV6		BIT(5)
#define HV_RS_TX_TCP		BIT(6)
#define HV_RS_TX_UDP		BIT(7)
#define HV_RS_TX_MORE		BIT(8)	/* another packet for the queue follows at once */

/* Memory that follows in guest-physical addresses, as VMBus writes it (GpaRun). */
struct hv_rs_range {
	u32 len;
	u32 offset;		/* in the first page */
	u64 pfn;
};

SIZE(struct hv_rs_range, 16);
AT(struct hv_rs_range, offset, 4);
AT(struct hv_rs_range, pfn, 8);

/* What hv_rs_tx_put_ranges() has written. */
struct hv_rs_put {
	u32 ranges;
	u32 words;
};

SIZE(struct hv_rs_put, 8);
AT(struct hv_rs_put, words, 4);

/* What a driver knows of a packet received. */
struct hv_rs_rx {
	u32 hash;
	u16 vlan_tci;
	u16 queue;
	u32 flags;		/* HV_RS_RX_* */
};

SIZE(struct hv_rs_rx, 12);
AT(struct hv_rs_rx, vlan_tci, 4);
AT(struct hv_rs_rx, queue, 6);
AT(struct hv_rs_rx, flags, 8);

#define HV_RS_RX_HASH		BIT(0)
#define HV_RS_RX_VLAN		BIT(1)
#define HV_RS_RX_CSUM_OK	BIT(2)	/* the transport checksum was verified */
#define HV_RS_RX_FIX_IP_CSUM	BIT(3)	/* the IPv4 header is right, but for its checksum */

struct hv_rs_net_stats {
	u64 rx_packets;
	u64 tx_packets;
	u64 rx_bytes;
	u64 tx_bytes;
	u64 multicast;
	u64 rx_dropped;
	u64 tx_dropped;
};

SIZE(struct hv_rs_net_stats, 56);

/* Ring, queue and hash settings as ethtool shows them. */
struct hv_rs_ring {
	u32 rx_max;
	u32 tx_max;
	u32 rx;
	u32 tx;
};

SIZE(struct hv_rs_ring, 16);

struct hv_rs_channels {
	u32 max;
	u32 count;
};

SIZE(struct hv_rs_channels, 8);

/* The driver, in the order of ffi.rs. The first argument is what was given with it. */
struct hv_rs_net_ops {
	int (*open)(const void *data);
	int (*stop)(const void *data);
	int (*xmit)(const void *data, struct hv_rs_tx *tx);
	u16 (*select_queue)(const void *data, struct sk_buff *skb);
	void (*set_rx_mode)(const void *data);
	int (*change_mtu)(const void *data, u32 mtu);
	int (*set_address)(const void *data, const u8 *address);
	void (*stats)(const void *data, struct hv_rs_net_stats *stats);
	u64 (*fix_features)(const void *data, u64 features);
	int (*set_features)(const void *data, u64 features);
	void (*tx_timeout)(const void *data, u32 queue);
	int (*set_xdp)(const void *data, struct bpf_prog *prog, struct netlink_ext_ack *extack);
	int (*xdp_xmit)(const void *data, u32 n, struct xdp_frame **frames);
	/* ethtool */
	u32 (*regs)(const void *data, u32 *regs, u32 count);
	u32 (*msg_level)(const void *data);
	void (*set_msg_level)(const void *data, u32 level);
	u32 (*stat_count)(const void *data);
	void (*stat_names)(const void *data, u8 *names, u32 count);
	void (*stat_values)(const void *data, u64 *values, u32 count);
	void (*channels)(const void *data, struct hv_rs_channels *channels);
	int (*set_channels)(const void *data, u32 count);
	u32 (*rx_rings)(const void *data);
	u32 (*rss_table_size)(const void *data);
	int (*rss)(const void *data, u32 *table, u32 entries, u8 *key, u32 key_len);
	int (*set_rss)(const void *data, const u32 *table, u32 entries, const u8 *key, u32 key_len);
	u32 (*hash_fields)(const void *data, u32 flow);
	int (*set_hash_fields)(const void *data, u32 flow, u32 fields);
	u32 (*speed)(const void *data);
	u8 (*duplex)(const void *data);
	int (*set_link)(const void *data, u32 speed, u8 duplex);
	void (*ring)(const void *data, struct hv_rs_ring *ring);
	int (*set_ring)(const void *data, u32 rx, u32 tx);
};

SIZE(struct hv_rs_net_ops, 32 * 8);

/* The private data of a network device. */
struct hv_rs_net_priv {
	const struct hv_rs_net_ops *ops;
	const void *data;
};

/* A NAPI context, with what belongs to its receive queue. */
struct hv_rs_napi {
	struct napi_struct napi;
	const void *data;
	u32 (*poll)(const void *data, struct hv_rs_napi *napi, u32 budget);
	struct bpf_prog __rcu *prog;
	bool flush;		/* frames were redirected */
	u16 queue;
	struct xdp_rxq_info rxq;
};

extern const struct ethtool_ops hv_rs_ethtool_ops;
int hv_rs_net_bpf(struct net_device *dev, struct netdev_bpf *bpf);
int hv_rs_net_xdp_xmit(struct net_device *dev, int n, struct xdp_frame **frames, u32 flags);

#endif
