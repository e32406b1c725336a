package swarm

// Listing is what the access list says of one info hash.
type Listing uint8

const (
	Unlisted Listing = iota
	Denied
	Allowed
)

// Listed is an info hash with what the access list says of it, or shall say.
type Listed struct {
	InfoHash InfoHash
	Listing  Listing
	Filed    bool // says the access file, and no command
}
