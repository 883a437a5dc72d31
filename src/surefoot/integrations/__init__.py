"""Other people's trainers. Nothing else in surefoot imports these."""
