"""The live page: what the gateway does, for people. Reads beside the requests, writes by the admin's hand alone."""
