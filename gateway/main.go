// Command gateway is Swarmgate: a stateless BitTorrent tracker in front of Redis.
//
//	go run ./gateway                               // on a store of its own
//	go run ./gateway --redis redis://HOST:6379     // on Redis or a Redis Cluster
//
// It reads its flags (config.go), starts a store, the policy and both front ends,
// and hands them to each other (run.go). Any number of gateways may share one
// Redis.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9/logging"
)

func main() {
	logging.Disable() // go-redis's own lines: the store logs what matters of them
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal drains, a second one ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(start(ctx, os.Args[1:], os.LookupEnv, os.Stdout, os.Stderr))
}

// start carries out a command line and returns the exit code: 2 for one that makes
// no sense, 1 for what failed.
func start(ctx context.Context, args []string, lookupEnv func(string) (string, bool), stdout, stderr io.Writer) int {
	command, config, err := parseConfig(args, lookupEnv, stdout, stderr)
	switch {
	case errors.Is(err, errHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "gateway: %v\nTry --help.\n", err)
		return 2
	}
	switch command {
	case commandHealth:
		err = health(ctx, config)
	case commandImport:
		err = importStatedump(ctx, config, os.Stdin, stderr)
	case commandAccess:
		err = changeAccess(ctx, config, stdout, stderr)
	case commandRotate:
		err = rotateSecret(ctx, config, stdout)
	default:
		err = run(ctx, config, stdout, nil)
	}
	var misuse *misuseError
	switch {
	case errors.As(err, &misuse):
		fmt.Fprintf(stderr, "gateway: %v\nTry --help.\n", err)
		return 2
	case err != nil:
		fmt.Fprintf(stderr, "gateway: %v\n", err)
		return 1
	}
	return 0
}

// health asks the gateway with this configuration whether it is up.
func health(ctx context.Context, c *Config) error {
	addr, err := c.loadAdminAddr()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", addr, response.Status)
	}
	return nil
}
