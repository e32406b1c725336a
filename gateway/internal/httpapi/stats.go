package httpapi

import (
	"context"

	"github.com/gofiber/fiber/v2"
)

// Stats has the statistics, as pages by the modes of opentracker's /stats.
type Stats interface {
	// Page is that of a mode; known is false if there is none. An error says that there is none now.
	Page(ctx context.Context, mode string) (page []byte, known bool, err error)
	// JSON is all there is in one document.
	JSON(ctx context.Context) ([]byte, error)
}

// defaultMode is the page of who names none.
const defaultMode = "peer"

// stats answers ?mode=.
func (s *Server) stats(c *fiber.Ctx) error {
	mode, args, client := defaultMode, c.Context().QueryArgs(), s.remote(c)
	if args.Has("mode") {
		mode = string(args.Peek("mode"))
	}
	switch {
	case mode == "tpbs":
		return s.fullScrape(c, client, string(args.Peek("format")))
	case s.Stats == nil:
		return fiber.ErrNotFound
	case !among(s.StatsNetworks, client):
		return fiber.ErrForbidden
	}
	if mode == "statedump" {
		return s.sendAll(c, formatDump, client)
	}
	page, known, err := s.Stats.Page(context.Background(), mode)
	switch {
	case err != nil:
		return fiber.ErrServiceUnavailable
	case !known:
		return fiber.ErrBadRequest
	}
	return send(c, page)
}

func (s *Server) statsJSON(c *fiber.Ctx) error {
	if !among(s.StatsNetworks, s.remote(c)) {
		return fiber.ErrForbidden
	}
	page, err := s.Stats.JSON(context.Background())
	if err != nil {
		return fiber.ErrServiceUnavailable
	}
	c.Context().SetContentType(fiber.MIMEApplicationJSON)
	c.Context().SetBody(page)
	return nil
}
