// SPDX-License-Identifier: GPL-2.0
/* ethtool operations for Rust: see shim.c. */
#include <linux/ethtool.h>
#include <linux/if_ether.h>
#include <linux/string.h>

#include "shim.h"

static_assert(ETH_GSTRING_LEN == 32);
static_assert(TCP_V4_FLOW == 0x01 && UDP_V4_FLOW == 0x02 && TCP_V6_FLOW == 0x05 && UDP_V6_FLOW == 0x06);
static_assert(IPV4_FLOW == 0x10 && IPV6_FLOW == 0x11);
static_assert(RXH_IP_SRC == BIT(4) && RXH_IP_DST == BIT(5) && RXH_L4_B_0_1 == BIT(6) && RXH_L4_B_2_3 == BIT(7));

/* What the C driver has, and tools know it by. */
#define DRIVER_NAME "hv_netvsc"
#define REGS 16
#define KEY_LEN 40

static const struct hv_rs_net_priv *hv_rs_priv(const struct net_device *dev)
{
	return netdev_priv(dev);
}

static void hv_rs_get_drvinfo(struct net_device *dev, struct ethtool_drvinfo *info)
{
	strscpy(info->driver, DRIVER_NAME, sizeof(info->driver));
	strscpy(info->fw_version, "N/A", sizeof(info->fw_version));
}

static int hv_rs_get_regs_len(struct net_device *dev)
{
	return REGS * sizeof(u32);
}

static void hv_rs_get_regs(struct net_device *dev, struct ethtool_regs *regs, void *p)
{
	const struct hv_rs_net_priv *priv = hv_rs_priv(dev);

	regs->version = priv->ops->regs(priv->data, p, REGS);
}

static u32 hv_rs_get_msglevel(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->msg_level(p->data);
}

static void hv_rs_set_msglevel(struct net_device *dev, u32 level)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	p->ops->set_msg_level(p->data, level);
}

static int hv_rs_get_sset_count(struct net_device *dev, int set)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return set == ETH_SS_STATS ? p->ops->stat_count(p->data) : -EINVAL;
}

static void hv_rs_get_strings(struct net_device *dev, u32 set, u8 *names)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	if (set == ETH_SS_STATS)
		p->ops->stat_names(p->data, names, p->ops->stat_count(p->data));
}

static void hv_rs_get_ethtool_stats(struct net_device *dev, struct ethtool_stats *stats, u64 *values)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	p->ops->stat_values(p->data, values, stats->n_stats);
}

static void hv_rs_get_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	struct hv_rs_channels c = {};

	p->ops->channels(p->data, &c);
	channels->max_combined = c.max;
	channels->combined_count = c.count;
}

static int hv_rs_set_channels(struct net_device *dev, struct ethtool_channels *channels)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	if (channels->rx_count || channels->tx_count || channels->other_count)
		return -EINVAL;
	return p->ops->set_channels(p->data, channels->combined_count);
}

static u32 hv_rs_get_rx_ring_count(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->rx_rings(p->data);
}

static u32 hv_rs_get_rxfh_key_size(struct net_device *dev)
{
	return KEY_LEN;
}

static u32 hv_rs_get_rxfh_indir_size(struct net_device *dev)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->rss_table_size(p->data);
}

static int hv_rs_get_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rxfh)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	rxfh->hfunc = ETH_RSS_HASH_TOP;
	return p->ops->rss(p->data, rxfh->indir, hv_rs_get_rxfh_indir_size(dev), rxfh->key, KEY_LEN);
}

static int hv_rs_set_rxfh(struct net_device *dev, struct ethtool_rxfh_param *rxfh, struct netlink_ext_ack *extack)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	if (rxfh->hfunc != ETH_RSS_HASH_NO_CHANGE && rxfh->hfunc != ETH_RSS_HASH_TOP)
		return -EOPNOTSUPP;
	return p->ops->set_rss(p->data, rxfh->indir, hv_rs_get_rxfh_indir_size(dev), rxfh->key, KEY_LEN);
}

static int hv_rs_get_rxfh_fields(struct net_device *dev, struct ethtool_rxfh_fields *fields)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	fields->data = p->ops->hash_fields(p->data, fields->flow_type);
	return 0;
}

static int hv_rs_set_rxfh_fields(struct net_device *dev, const struct ethtool_rxfh_fields *fields,
				 struct netlink_ext_ack *extack)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->set_hash_fields(p->data, fields->flow_type, fields->data);
}

static int hv_rs_get_link_ksettings(struct net_device *dev, struct ethtool_link_ksettings *cmd)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	cmd->base.speed = p->ops->speed(p->data);
	cmd->base.duplex = p->ops->duplex(p->data);
	cmd->base.port = PORT_OTHER;
	return 0;
}

static int hv_rs_set_link_ksettings(struct net_device *dev, const struct ethtool_link_ksettings *cmd)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	u32 speed = p->ops->speed(p->data);
	u8 duplex = p->ops->duplex(p->data);
	int ret = ethtool_virtdev_set_link_ksettings(dev, cmd, &speed, &duplex);

	return ret ?: p->ops->set_link(p->data, speed, duplex);
}

static void hv_rs_get_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
				struct kernel_ethtool_ringparam *kernel_ring, struct netlink_ext_ack *extack)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);
	struct hv_rs_ring r = {};

	p->ops->ring(p->data, &r);
	ring->rx_max_pending = r.rx_max;
	ring->tx_max_pending = r.tx_max;
	ring->rx_pending = r.rx;
	ring->tx_pending = r.tx;
}

static int hv_rs_set_ringparam(struct net_device *dev, struct ethtool_ringparam *ring,
			       struct kernel_ethtool_ringparam *kernel_ring, struct netlink_ext_ack *extack)
{
	const struct hv_rs_net_priv *p = hv_rs_priv(dev);

	return p->ops->set_ring(p->data, ring->rx_pending, ring->tx_pending);
}

const struct ethtool_ops hv_rs_ethtool_ops = {
	.get_drvinfo = hv_rs_get_drvinfo,
	.get_regs_len = hv_rs_get_regs_len,
	.get_regs = hv_rs_get_regs,
	.get_msglevel = hv_rs_get_msglevel,
	.set_msglevel = hv_rs_set_msglevel,
	.get_link = ethtool_op_get_link,
	.get_ethtool_stats = hv_rs_get_ethtool_stats,
	.get_sset_count = hv_rs_get_sset_count,
	.get_strings = hv_rs_get_strings,
	.get_channels = hv_rs_get_channels,
	.set_channels = hv_rs_set_channels,
	.get_ts_info = ethtool_op_get_ts_info,
	.get_rx_ring_count = hv_rs_get_rx_ring_count,
	.get_rxfh_key_size = hv_rs_get_rxfh_key_size,
	.get_rxfh_indir_size = hv_rs_get_rxfh_indir_size,
	.get_rxfh = hv_rs_get_rxfh,
	.set_rxfh = hv_rs_set_rxfh,
	.get_rxfh_fields = hv_rs_get_rxfh_fields,
	.set_rxfh_fields = hv_rs_set_rxfh_fields,
	.get_link_ksettings = hv_rs_get_link_ksettings,
	.set_link_ksettings = hv_rs_set_link_ksettings,
	.get_ringparam = hv_rs_get_ringparam,
	.set_ringparam = hv_rs_set_ringparam,
};
