"""Two classes of verbs traffic on one limited link: does MODEL keep its share, and does KV come back?"""
