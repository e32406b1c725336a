package audit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"swarmgate/swarmstore/storetest"
	"swarmgate/swarmstore/swarm"
)

// Cluster looks at a Redis Cluster. Its nodes go by their addresses.
type Cluster struct {
	t       testing.TB // that it ends with
	nodes   []string
	clients map[string]*redis.Client
}

// NewCluster of nodes.
func NewCluster(t testing.TB, nodes ...string) *Cluster {
	c := &Cluster{t: t, clients: map[string]*redis.Client{}}
	for _, node := range nodes {
		c.Add(node)
	}
	return c
}

// Add a node.
func (c *Cluster) Add(node string) {
	client := redis.NewClient(&redis.Options{
		Addr: node, MaxRetries: -1, Protocol: 2, DialTimeout: 500 * time.Millisecond, ReadTimeout: 500 * time.Millisecond,
	})
	c.t.Cleanup(func() { _ = client.Close() })
	c.nodes = append(c.nodes, node)
	c.clients[node] = client
}

// Nodes are their addresses.
func (c *Cluster) Nodes() []string { return slices.Clone(c.nodes) }

// Client of a node.
func (c *Cluster) Client(node string) *redis.Client { return c.clients[node] }

// Agreed tells whether all nodes know all nodes, and what they are.
func (c *Cluster) Agreed() error {
	var first map[string]Role
	for _, node := range c.nodes {
		roles, err := c.Roles(node)
		if err != nil {
			return err
		}
		if first == nil {
			first = roles
		}
		if len(roles) != len(c.nodes) {
			return fmt.Errorf("%s knows %d of %d nodes", node, len(roles), len(c.nodes))
		}
		for addr, r := range roles {
			if one := first[addr]; r.Is("handshake") || r.Master != one.Master || !slices.Equal(r.Slots, one.Slots) {
				return fmt.Errorf("%s takes %s for %+v, others for %+v", node, addr, r, first[addr])
			}
		}
	}
	return nil
}

// Replicated tells whether every master has a replica that is up to date.
func (c *Cluster) Replicated() error {
	var errs []error
	for _, node := range c.nodes {
		info, err := c.clients[node].Info(context.Background(), "replication").Result()
		if err == nil && strings.Contains(info, "role:master") && !strings.Contains(info, "state=online") {
			err = errors.New("no replica is online")
		}
		if err == nil && strings.Contains(info, "role:slave") && !strings.Contains(info, "master_link_status:up") {
			err = errors.New("the link to the master is down")
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", node, err))
		}
	}
	return errors.Join(errs...)
}

// Role is a line of CLUSTER NODES.
type Role struct {
	ID     string
	Master string // of whom it is a replica, or "-"
	Flags  []string
	Slots  []string
}

// Is tells whether it has a flag.
func (r Role) Is(flag string) bool { return slices.Contains(r.Flags, flag) }

// Roles of all nodes, as one of them sees it.
func (c *Cluster) Roles(from string) (map[string]Role, error) {
	text, err := c.clients[from].ClusterNodes(context.Background()).Result()
	if err != nil {
		return nil, err
	}
	roles := map[string]Role{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 8 {
			return nil, fmt.Errorf("CLUSTER NODES says %q", line)
		}
		addr, _, _ := strings.Cut(f[1], "@")
		roles[addr] = Role{ID: f[0], Master: f[3], Flags: strings.Split(f[2], ","), Slots: f[8:]}
	}
	return roles, nil
}

// Masters are the nodes that hold slots, as one of them sees it.
func (c *Cluster) Masters(from string) (found []string, err error) {
	roles, err := c.Roles(from)
	for _, node := range c.nodes {
		if r := roles[node]; r.Is("master") && len(r.Slots) > 0 {
			found = append(found, node)
		}
	}
	return found, err
}

// Replica of a master, as another node sees it.
func (c *Cluster) Replica(of, from string) (string, error) {
	roles, err := c.Roles(from)
	if err != nil {
		return "", err
	}
	for _, node := range c.nodes {
		if roles[node].Master == roles[of].ID {
			return node, nil
		}
	}
	return "", fmt.Errorf("%s has no replica", of)
}

// Promoted waits until a replica is a master, as another node sees it.
func (c *Cluster) Promoted(t testing.TB, replica, from string) {
	t.Helper()
	storetest.Eventually(t, 20*time.Second, func() error {
		roles, err := c.Roles(from)
		if r := roles[replica]; err == nil && (!r.Is("master") || len(r.Slots) == 0) {
			err = fmt.Errorf("%s is %v", replica, r.Flags)
		}
		return err
	})
}

// Member is a peer of a swarm.
type Member struct {
	Hash    swarm.InfoHash
	Compact string
}

// Standing is where the cluster has a peer, and as what.
type Standing struct {
	Class  swarm.Class
	Master string
}

// Peers reads the sorted sets of all masters (swarmstore/DESIGN.md says what they hold).
func (c *Cluster) Peers(from string) (map[Member][]Standing, error) {
	masters, err := c.Masters(from)
	if err != nil {
		return nil, err
	}
	var clients []*redis.Client
	for _, node := range masters {
		clients = append(clients, c.clients[node])
	}
	return Peers(clients...)
}

// Peers reads the sorted sets of nodes that are masters.
func Peers(masters ...*redis.Client) (map[Member][]Standing, error) {
	ctx := context.Background()
	found := map[Member][]Standing{}
	for _, client := range masters {
		keys := client.Scan(ctx, 0, "*", 1000).Iterator()
		for keys.Next(ctx) {
			key := keys.Val()
			if len(key) != 26 || key[25] != 'p' && key[25] != 'q' {
				continue
			}
			members, err := client.ZRangeWithScores(ctx, key, 0, -1).Result()
			if err != nil {
				return nil, err
			}
			for _, z := range members {
				compact := z.Member.(string)
				if len(compact) < swarm.Size4 {
					continue // the layout
				}
				m := Member{swarm.InfoHash([]byte(key[5:25])), compact}
				class := swarm.Class((int64(z.Score)+1<<31)>>30 - 1)
				found[m] = append(found[m], Standing{class, client.Options().Addr})
			}
		}
		if err := keys.Err(); err != nil {
			return nil, err
		}
	}
	return found, nil
}
