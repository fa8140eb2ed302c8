"""What experts have learnt and where systems err: analyses of saved experts, data and results."""
