"""Tests of the vhost-user protocol, in which the test itself is the front-end."""
