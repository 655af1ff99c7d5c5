"""Network, optimizer, loop, devices and processes; nothing here prints or writes files."""
