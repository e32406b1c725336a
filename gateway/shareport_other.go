//go:build !linux

package main

import "errors"

const canSharePort = false

func sharePort(uintptr) error { return errors.ErrUnsupported }

func refuseNew(uintptr) {}

func stopEmpty(uintptr) bool { return true }
