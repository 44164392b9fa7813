// SPDX-License-Identifier: GPL-2.0
/*
 * Network devices for Rust: kernel::bindings has no network headers to speak of, and most of what drivers call is inline. This
 * file moves values between the structures of the network stack and those of shim.h, and decides nothing.
 */
#include <linux/etherdevice.h>
#include <linux/if_vlan.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/jhash.h>
#include <linux/module.h>
#include <linux/once.h>
#include <linux/rtnetlink.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <net/flow_dissector.h>
#include <net/netdev_lock.h>
#include <net/sock.h>

#include "shim.h"

/* Features and states that device.rs names. */
static_assert(NETIF_F_SG == BIT_ULL(0) && NETIF_F_IP_CSUM == BIT_ULL(1) && NETIF_F_IPV6_CSUM == BIT_ULL(4));
static_assert(ETH_ALEN == 6 && NETDEV_TX_OK == 0 && NETDEV_TX_BUSY == 0x10);

u64 hv_rs_net_feature(u32 which)
{
	static const u64 features[] = {
		NETIF_F_SG, NETIF_F_IP_CSUM, NETIF_F_IPV6_CSUM, NETIF_F_RXCSUM, NETIF_F_TSO, NETIF_F_TSO6, NETIF_F_LRO,
		NETIF_F_RXHASH, NETIF_F_HIGHDMA, NETIF_F_HW_VLAN_CTAG_TX, NETIF_F_HW_VLAN_CTAG_RX,
	};

	return which < ARRAY_SIZE(features) ? features[which] : 0;
}

/* Operations */

static const struct hv_rs_net_priv *hv_rs_priv(const struct net_device *dev)
{
	return netdev_priv(dev);
}

static int hv_rs_net_open(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->open(p->data);
}

static int hv_rs_net_stop(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->stop(p->data);
}

/* What the transport header is, for who has it checksummed or segmented. */
static u32 hv_rs_tx_protocol(const struct sk_buff *skb)
{
	u32 flags;
	u8 proto;

	if (skb->protocol == htons(ETH_P_IP)) {
		flags = HV_RS_TX_IPV4;
		proto = ip_hdr(skb)->protocol;
	} else if (skb->protocol == htons(ETH_P_IPV6)) {
		flags = HV_RS_TX_IPV6;
		proto = ipv6_hdr(skb)->nexthdr;
	} else {
		return 0;
	}
	if (proto == IPPROTO_TCP)
		flags |= HV_RS_TX_TCP;
	else if (proto == IPPROTO_UDP)
		flags |= HV_RS_TX_UDP;
	return flags;
}

/* Fills in @tx anew but for its queue. */
static __always_inline void hv_rs_tx_fill(struct hv_rs_tx *tx)
{
	struct sk_buff *skb = tx->skb;
	u32 flags = 0;

	tx->data = skb->data;
	tx->len = skb->len;
	tx->headlen = skb_headlen(skb);
	tx->hash = skb_get_hash_raw(skb);
	tx->vlan_tci = 0;
	tx->gso_size = 0;
	tx->transport = 0;
	tx->room = 0;
	tx->head = NULL;
	if (skb_vlan_tag_present(skb)) {
		flags |= HV_RS_TX_VLAN;
		tx->vlan_tci = skb_vlan_tag_get(skb);
	}
	if (unlikely(skb->protocol == htons(ETH_P_8021Q)))
		flags |= HV_RS_TX_VLAN_INSIDE;
	if (skb_is_gso(skb)) {
		flags |= HV_RS_TX_GSO | hv_rs_tx_protocol(skb);
		tx->gso_size = skb_shinfo(skb)->gso_size;
		tx->transport = skb_transport_offset(skb);
	} else if (skb->ip_summed == CHECKSUM_PARTIAL) {
		flags |= HV_RS_TX_PARTIAL | hv_rs_tx_protocol(skb);
		tx->transport = skb_transport_offset(skb);
	}
	tx->flags = flags;
}

/* After the packet was changed. */
void hv_rs_tx_look(struct hv_rs_tx *tx)
{
	hv_rs_tx_fill(tx);
}

static netdev_tx_t hv_rs_net_start_xmit(struct sk_buff *skb, struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	/* All of it is filled in. */
	struct hv_rs_tx tx __uninitialized;

	tx.skb = skb;
	tx.queue = skb_get_queue_mapping(skb);
	tx.txq = netdev_get_tx_queue(dev, tx.queue);
	hv_rs_tx_fill(&tx);
	if (netdev_xmit_more())
		tx.flags |= HV_RS_TX_MORE;
	skb_tx_timestamp(skb);
	return p->ops->xmit(p->data, &tx);
}

/* As netdev_pick_tx() does, with the driver's word where no queue is known. */
static u16 hv_rs_net_select_queue(struct net_device *dev, struct sk_buff *skb, struct net_device *sb_dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	struct sock *sk = skb->sk;
	int old = sk_tx_queue_get(sk);
	u32 real = READ_ONCE(dev->real_num_tx_queues);
	u16 queue = old;

	if (old < 0 || skb->ooo_okay || old >= real) {
		if (skb_rx_queue_recorded(skb)) {
			queue = skb_get_rx_queue(skb);
		} else {
			queue = p->ops->select_queue(p->data, skb);
			if (queue != old && sk && sk_fullsock(sk) && rcu_access_pointer(sk->sk_dst_cache))
				sk_tx_queue_set(sk, queue);
		}
	}
	while (unlikely(queue >= real))
		queue -= real;
	return queue;
}

/*
 * A hash of the packet's flow, or 0. @l4: for which protocols ports count (HV_RS_TX_IPV4 | HV_RS_TX_TCP is bit 0, with UDP bit 1,
 * those of IPv6 bits 2 and 3).
 */
u32 hv_rs_skb_flow_hash(struct sk_buff *skb, u32 l4)
{
	static u32 seed __read_mostly;
	struct flow_keys flow;
	u32 bit = 0, hash;

	if (!skb_flow_dissect_flow_keys(skb, &flow, 0))
		return 0;
	if (flow.basic.ip_proto == IPPROTO_TCP)
		bit = BIT(0);
	else if (flow.basic.ip_proto == IPPROTO_UDP)
		bit = BIT(1);
	if (flow.basic.n_proto == htons(ETH_P_IPV6))
		bit <<= 2;
	else if (flow.basic.n_proto != htons(ETH_P_IP))
		bit = 0;
	if (bit & l4)
		return skb_get_hash(skb);
	net_get_random_once(&seed, sizeof(seed));
	if (flow.basic.n_proto == htons(ETH_P_IP))
		hash = jhash2((u32 *)&flow.addrs.v4addrs, 2, seed);
	else if (flow.basic.n_proto == htons(ETH_P_IPV6))
		hash = jhash2((u32 *)&flow.addrs.v6addrs, 8, seed);
	else
		return 0;
	__skb_set_sw_hash(skb, hash, false);
	return hash;
}

static void hv_rs_net_set_rx_mode(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	p->ops->set_rx_mode(p->data);
}

static int hv_rs_net_change_mtu(struct net_device *dev, int mtu)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->change_mtu(p->data, mtu);
}

static int hv_rs_net_set_mac_address(struct net_device *dev, void *addr)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	struct sockaddr_storage *sa = addr;
	int ret = eth_prepare_mac_addr_change(dev, addr);

	if (ret)
		return ret;
	ret = p->ops->set_address(p->data, (const u8 *)sa->__data);
	if (!ret)
		eth_commit_mac_addr_change(dev, addr);
	return ret;
}

static void hv_rs_net_get_stats64(struct net_device *dev, struct rtnl_link_stats64 *t)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	struct hv_rs_net_stats s = {};

	p->ops->stats(p->data, &s);
	t->rx_packets = s.rx_packets;
	t->tx_packets = s.tx_packets;
	t->rx_bytes = s.rx_bytes;
	t->tx_bytes = s.tx_bytes;
	t->multicast = s.multicast;
	t->rx_dropped = s.rx_dropped;
	t->tx_dropped = s.tx_dropped;
}

static netdev_features_t hv_rs_net_fix_features(struct net_device *dev, netdev_features_t features)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->fix_features(p->data, features);
}

static int hv_rs_net_set_features(struct net_device *dev, netdev_features_t features)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->set_features(p->data, features);
}

static void hv_rs_net_tx_timeout(struct net_device *dev, unsigned int queue)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	p->ops->tx_timeout(p->data, queue);
}

static const struct net_device_ops hv_rs_net_device_ops = {
	.ndo_open = hv_rs_net_open,
	.ndo_stop = hv_rs_net_stop,
	.ndo_start_xmit = hv_rs_net_start_xmit,
	.ndo_select_queue = hv_rs_net_select_queue,
	.ndo_set_rx_mode = hv_rs_net_set_rx_mode,
	.ndo_change_mtu = hv_rs_net_change_mtu,
	.ndo_validate_addr = eth_validate_addr,
	.ndo_set_mac_address = hv_rs_net_set_mac_address,
	.ndo_get_stats64 = hv_rs_net_get_stats64,
	.ndo_fix_features = hv_rs_net_fix_features,
	.ndo_set_features = hv_rs_net_set_features,
	.ndo_tx_timeout = hv_rs_net_tx_timeout,
	.ndo_bpf = hv_rs_net_bpf,
	.ndo_xdp_xmit = hv_rs_net_xdp_xmit,
};

/* Devices */

/* May sleep. NULL without memory. @parent does the DMA. */
struct net_device *hv_rs_netdev_alloc(struct device *parent, u32 queues, u32 headroom)
{
	struct net_device *dev = alloc_etherdev_mq(sizeof(struct hv_rs_net_priv), queues);

	if (!dev)
		return NULL;
	SET_NETDEV_DEV(dev, parent);
	dev->needed_headroom = headroom;
	netif_carrier_off(dev);
	netif_set_real_num_tx_queues(dev, 1);
	netif_set_real_num_rx_queues(dev, 1);
	return dev;
}

void hv_rs_netdev_free(struct net_device *dev)
{
	free_netdev(dev);
}

/* Under RTNL. @ops and @data stay until hv_rs_netdev_unregister() has returned. */
int hv_rs_netdev_register(struct net_device *dev, const struct hv_rs_net_ops *ops, const void *data)
{
	struct hv_rs_net_priv *p = netdev_priv(dev);

	p->ops = ops;
	p->data = data;
	dev->netdev_ops = &hv_rs_net_device_ops;
	dev->ethtool_ops = &hv_rs_ethtool_ops;
	dev->xdp_features = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT | NETDEV_XDP_ACT_NDO_XMIT;
	netdev_lockdep_set_classes(dev);
	return register_netdevice(dev);
}

/* May sleep: waits until nobody holds the device. Not under RTNL. */
void hv_rs_netdev_unregister(struct net_device *dev)
{
	unregister_netdev(dev);
}

void hv_rs_netdev_set_mtu_limits(struct net_device *dev, u32 mtu, u32 min, u32 max)
{
	WRITE_ONCE(dev->mtu, mtu);
	dev->min_mtu = min;
	dev->max_mtu = max;
}

void hv_rs_netdev_set_mtu(struct net_device *dev, u32 mtu)
{
	WRITE_ONCE(dev->mtu, mtu);
}

u32 hv_rs_netdev_mtu(const struct net_device *dev)
{
	return READ_ONCE(dev->mtu);
}

u32 hv_rs_netdev_flags(const struct net_device *dev)
{
	return READ_ONCE(dev->flags);
}

bool hv_rs_netdev_has_multicast(struct net_device *dev)
{
	return !netdev_mc_empty(dev);
}

void hv_rs_netdev_set_address(struct net_device *dev, const u8 *address)
{
	eth_hw_addr_set(dev, address);
	ether_addr_copy(dev->perm_addr, address);
}

u64 hv_rs_netdev_features(const struct net_device *dev)
{
	return dev->features;
}

u64 hv_rs_netdev_hw_features(const struct net_device *dev)
{
	return dev->hw_features;
}

void hv_rs_netdev_set_features(struct net_device *dev, u64 features)
{
	dev->features = features;
}

void hv_rs_netdev_set_hw_features(struct net_device *dev, u64 features)
{
	dev->hw_features = features;
}

void hv_rs_netdev_set_vlan_features(struct net_device *dev, u64 features)
{
	dev->vlan_features = features;
}

void hv_rs_netdev_set_tso_max(struct net_device *dev, u32 bytes)
{
	netif_set_tso_max_size(dev, bytes);
}

bool hv_rs_netdev_running(const struct net_device *dev)
{
	return netif_running(dev);
}

bool hv_rs_netdev_has_alias(const struct net_device *dev)
{
	return rcu_access_pointer(dev->ifalias);
}

bool hv_rs_netdev_rss_configured(const struct net_device *dev)
{
	return netif_is_rxfh_configured(dev);
}

void hv_rs_netdev_carrier(struct net_device *dev, bool on)
{
	if (on)
		netif_carrier_on(dev);
	else
		netif_carrier_off(dev);
}

void hv_rs_netdev_tx_disable(struct net_device *dev)
{
	netif_tx_disable(dev);
}

void hv_rs_netdev_tx_wake_all(struct net_device *dev)
{
	netif_tx_wake_all_queues(dev);
}

void hv_rs_netdev_attach(struct net_device *dev, bool on)
{
	if (on)
		netif_device_attach(dev);
	else
		netif_device_detach(dev);
}

int hv_rs_netdev_set_queues(struct net_device *dev, u32 count)
{
	int ret = netif_set_real_num_tx_queues(dev, count);

	return ret ?: netif_set_real_num_rx_queues(dev, count);
}

struct netdev_queue *hv_rs_netdev_txq(struct net_device *dev, u32 index)
{
	return index < dev->num_tx_queues ? netdev_get_tx_queue(dev, index) : NULL;
}

const char *hv_rs_netdev_name(const struct net_device *dev)
{
	return netdev_name(dev);
}

u32 hv_rs_net_msg_init(int debug, u32 preset)
{
	return netif_msg_init(debug, preset);
}

/* Transmit queues */

bool hv_rs_txq_sent(struct netdev_queue *q, u32 bytes, bool more)
{
	return __netdev_tx_sent_queue(q, bytes, more);
}

void hv_rs_txq_completed(struct netdev_queue *q, u32 packets, u32 bytes)
{
	netdev_tx_completed_queue(q, packets, bytes);
}

void hv_rs_txq_reset(struct netdev_queue *q)
{
	netdev_tx_reset_queue(q);
}

void hv_rs_txq_stop(struct netdev_queue *q)
{
	netif_tx_stop_queue(q);
}

void hv_rs_txq_wake(struct netdev_queue *q)
{
	netif_tx_wake_queue(q);
}

bool hv_rs_txq_stopped(const struct netdev_queue *q)
{
	return netif_tx_queue_stopped(q);
}

bool hv_rs_txq_blocked(const struct netdev_queue *q)
{
	return netif_xmit_stopped(q);
}

/* In softirq context, or with bottom halves off. */
void hv_rs_txq_lock(struct netdev_queue *q)
{
	__netif_tx_lock(q, smp_processor_id());
}

void hv_rs_txq_unlock(struct netdev_queue *q)
{
	__netif_tx_unlock(q);
}

/* Process context. */
void hv_rs_txq_lock_bh(struct netdev_queue *q)
{
	__netif_tx_lock_bh(q);
}

void hv_rs_txq_unlock_bh(struct netdev_queue *q)
{
	__netif_tx_unlock_bh(q);
}

/* Packets received */

/* For @len bytes, which the caller fills in from *@data on; NULL without memory. In the poll of @n. */
struct sk_buff *hv_rs_rx_alloc(struct hv_rs_napi *n, u32 len, u8 **data)
{
	struct sk_buff *skb = napi_alloc_skb(&n->napi, len);

	if (likely(skb))
		*data = __skb_put(skb, len);
	return skb;
}

void hv_rs_rx_free(struct sk_buff *skb)
{
	dev_kfree_skb_any(skb);
}

/* Hands a packet, an Ethernet frame, to the stack. Returns its PACKET_* type, or -1 when it was too short for what @rx says. */
int hv_rs_rx_deliver(struct hv_rs_napi *n, struct sk_buff *skb, const struct hv_rs_rx *rx)
{
	int type;

	skb->protocol = eth_type_trans(skb, n->napi.dev);
	if (rx->flags & HV_RS_RX_FIX_IP_CSUM && skb->protocol == htons(ETH_P_IP)) {
		struct iphdr *ip = (struct iphdr *)skb->data;

		if (skb_headlen(skb) < sizeof(*ip) || ip->ihl < 5 || skb_headlen(skb) < ip->ihl * 4) {
			kfree_skb(skb);
			return -1;
		}
		ip->check = 0;
		ip->check = ip_fast_csum(ip, ip->ihl);
	}
	if (rx->flags & HV_RS_RX_CSUM_OK)
		skb->ip_summed = CHECKSUM_UNNECESSARY;
	if (rx->flags & HV_RS_RX_HASH)
		skb_set_hash(skb, rx->hash, PKT_HASH_TYPE_L4);
	if (rx->flags & HV_RS_RX_VLAN)
		__vlan_hwaccel_put_tag(skb, htons(ETH_P_8021Q), rx->vlan_tci);
	skb_record_rx_queue(skb, rx->queue);
	type = skb->pkt_type;
	napi_gro_receive(&n->napi, skb);
	return type;
}

static_assert(PACKET_HOST == 0 && PACKET_BROADCAST == 1 && PACKET_MULTICAST == 2);

/* NAPI */

static int hv_rs_napi_poll(struct napi_struct *napi, int budget)
{
	struct hv_rs_napi *n = container_of(napi, struct hv_rs_napi, napi);
	u32 done = n->poll(n->data, n, budget);

	if (unlikely(n->flush)) {
		n->flush = false;
		xdp_do_flush();
	}
	return min_t(u32, done, budget);
}

/* May sleep; under RTNL once the device is registered. Polls nothing yet. NULL without memory. */
struct hv_rs_napi *hv_rs_napi_new(struct net_device *dev, u16 queue, const void *data,
				  u32 (*poll)(const void *data, struct hv_rs_napi *napi, u32 budget))
{
	struct hv_rs_napi *n = kzalloc(sizeof(*n), GFP_KERNEL);

	if (!n)
		return NULL;
	n->data = data;
	n->poll = poll;
	n->queue = queue;
	if (xdp_rxq_info_reg(&n->rxq, dev, queue, 0))
		goto free;
	if (xdp_rxq_info_reg_mem_model(&n->rxq, MEM_TYPE_PAGE_SHARED, NULL))
		goto unreg;
	netif_napi_add(dev, &n->napi, hv_rs_napi_poll);
	return n;
unreg:
	xdp_rxq_info_unreg(&n->rxq);
free:
	kfree(n);
	return NULL;
}

void hv_rs_napi_enable(struct hv_rs_napi *n)
{
	napi_enable(&n->napi);
	netif_queue_set_napi(n->napi.dev, n->queue, NETDEV_QUEUE_TYPE_RX, &n->napi);
	netif_queue_set_napi(n->napi.dev, n->queue, NETDEV_QUEUE_TYPE_TX, &n->napi);
}

/* May sleep: waits for a poll in progress. */
void hv_rs_napi_disable(struct hv_rs_napi *n)
{
	netif_queue_set_napi(n->napi.dev, n->queue, NETDEV_QUEUE_TYPE_TX, NULL);
	netif_queue_set_napi(n->napi.dev, n->queue, NETDEV_QUEUE_TYPE_RX, NULL);
	napi_disable(&n->napi);
}

/* May sleep. Not while enabled. */
void hv_rs_napi_free(struct hv_rs_napi *n)
{
	netif_napi_del(&n->napi);
	xdp_rxq_info_unreg(&n->rxq);
	kfree(n);
}

void hv_rs_napi_schedule(struct hv_rs_napi *n)
{
	napi_schedule(&n->napi);
}

bool hv_rs_napi_schedule_prep(struct hv_rs_napi *n)
{
	return napi_schedule_prep(&n->napi);
}

void hv_rs_napi_schedule_prepared(struct hv_rs_napi *n)
{
	__napi_schedule(&n->napi);
}

bool hv_rs_napi_complete(struct hv_rs_napi *n, u32 done)
{
	return napi_complete_done(&n->napi, done);
}

/* RTNL */

bool hv_rs_rtnl_trylock(void)
{
	return rtnl_trylock();
}

u32 hv_rs_default_rss_queues(void)
{
	return netif_get_num_default_rss_queues();
}
