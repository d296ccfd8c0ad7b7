"""The rig: real servers, a faulty network, scripted servers and certificates, all on the loopback interface."""
