"""Floor 6: what audits say of the policy in force, and what traffic says without labels. Never imports serving."""
