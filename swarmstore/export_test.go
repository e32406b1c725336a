package swarmstore

// SetScanHashes makes a scan go in rounds of n hashes.
func (s *Store) SetScanHashes(n int) { s.scanHashes = n }

// Nearest is how readers are chosen.
var Nearest = nearest
