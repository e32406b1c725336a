package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"swarmgate/gateway/internal/access"
	"swarmgate/swarmstore"
	"swarmgate/swarmstore/swarm"
)

// accessCommand is a command line that changes or shows the access list: changes, a file
// to import, or to list it when there is neither.
type accessCommand struct {
	changes []swarm.Listed
	file    string
}

func parseAccessCommand(args []string) (c accessCommand, err error) {
	if len(args) == 0 {
		return c, errors.New("access: one of deny, allow, remove, list, import must follow")
	}
	word, args := args[0], args[1:]
	switch listing, ok := access.ParseWord(word); {
	case ok && len(args) == 0:
		return c, fmt.Errorf("access %s: names no info hash", word)
	case ok:
		for _, arg := range args {
			hash, err := access.ParseHash(arg)
			if err != nil {
				return c, fmt.Errorf("access %s: %w", word, err)
			}
			c.changes = append(c.changes, swarm.Listed{InfoHash: hash, Listing: listing})
		}
		return c, nil
	case word == "import" && len(args) == 1 && args[0] != "":
		c.file = args[0]
		return c, nil
	case word == "import":
		return c, errors.New("access import: one FILE must follow")
	case word == "list" && len(args) == 0:
		return c, nil
	case word == "list":
		return c, fmt.Errorf("access list: %q is too much", args[0])
	}
	return c, fmt.Errorf("access: %q is none of deny, allow, remove, list, import", word)
}

// accessList is where a command finds the access list: in Redis, or behind a gateway.
type accessList interface {
	change(ctx context.Context, changes []swarm.Listed) error
	print(ctx context.Context, w io.Writer) error
}

// changeAccess carries out the access command.
func changeAccess(ctx context.Context, c *Config, stdout, stderr io.Writer) error {
	changes, ignored := c.AccessCommand.changes, 0
	if file := c.AccessCommand.file; file != "" {
		r, err := os.Open(file)
		if err != nil {
			return fmt.Errorf("access import: %w", err)
		}
		defer r.Close()
		var hashes []swarm.InfoHash
		if hashes, ignored, err = access.ParseFile(r, 0); err != nil {
			return fmt.Errorf("access import: %s: %w", file, err)
		}
		for _, hash := range hashes {
			changes = append(changes, swarm.Listed{InfoHash: hash, Listing: c.Access})
		}
	}

	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	list, end, err := openAccess(ctx, c, log)
	if err != nil {
		return err
	}
	defer end()
	if c.AccessCommand.file == "" && len(changes) == 0 {
		return list.print(ctx, stdout)
	}
	if err := list.change(ctx, changes); err != nil {
		return err
	}
	if c.AccessCommand.file != "" {
		fmt.Fprintf(stdout, "%s %d info hashes; %d lines are no info hashes\n", access.Word(c.Access), len(changes), ignored)
	}
	return nil
}

func openAccess(ctx context.Context, c *Config, log *slog.Logger) (list accessList, end func(), err error) {
	if len(c.Redis) > 0 {
		store, err := swarmstore.Open(ctx, swarmstore.Options{URLs: c.Redis, WaitReplicas: c.WaitReplicas, Log: log})
		if errors.Is(err, swarmstore.ErrURL) {
			err = &misuseError{fmt.Errorf("--redis: %w", err)}
		}
		if err != nil {
			return nil, nil, err
		}
		return storedAccess{store}, store.Close, nil
	}
	addr, err := c.loadAdminAddr()
	if err != nil {
		return nil, nil, err
	}
	if c.AdminToken == "" {
		return nil, nil, &misuseError{errors.New("--admin-token: is missing, and so is --redis: the list of a gateway is shown and changed with its token only")}
	}
	return &servedAccess{addr, c.AdminToken, http.Client{Timeout: time.Minute}}, func() {}, nil
}

// storedAccess is the list in Redis.
type storedAccess struct{ *swarmstore.Store }

func (a storedAccess) change(ctx context.Context, changes []swarm.Listed) error {
	return a.ChangeAccess(ctx, changes)
}

func (a storedAccess) print(ctx context.Context, w io.Writer) error {
	return writeAccess(ctx, a, w)
}

// servedAccess is the list of a gateway, through its admin listener.
type servedAccess struct {
	addr, token string
	http.Client
}

// change sends as much at a time as a gateway takes.
func (a *servedAccess) change(ctx context.Context, changes []swarm.Listed) error {
	const most = maxAccessBody / len("remove \n0123456789012345678901234567890123456789")
	for part := range slices.Chunk(changes, most) {
		var body []byte
		for _, c := range part {
			body = appendChange(body, c)
		}
		if err := a.ask(ctx, http.MethodPost, body, io.Discard); err != nil {
			return err
		}
	}
	return nil
}

func (a *servedAccess) print(ctx context.Context, w io.Writer) error {
	return a.ask(ctx, http.MethodGet, nil, w)
}

func (a *servedAccess) ask(ctx context.Context, method string, body []byte, answer io.Writer) error {
	request, err := http.NewRequestWithContext(ctx, method, "http://"+a.addr+"/access", bytes.NewReader(body))
	if err != nil {
		return err
	}
	request.Header.Set("Authorization", "Bearer "+a.token)
	response, err := a.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode/100 != 2 {
		why, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10))
		return fmt.Errorf("%s answers %s: %s", a.addr, response.Status, strings.TrimSpace(string(why)))
	}
	_, err = io.Copy(answer, response.Body)
	return err
}
