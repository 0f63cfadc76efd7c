package api

func (c *call) impersonate() bool { return true }
